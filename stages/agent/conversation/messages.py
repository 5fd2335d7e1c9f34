"""The one format of agents: messages, turns and tool calls, with the one parser and the one writer of them.

An assistant's turn is, and is nothing but, a thought followed by one action (DR-Venus, arXiv 2604.19859):

    <think>…</think>
    <tool_call>{"name": "search", "arguments": {"query": "…"}}</tool_call>      or      <answer>…</answer>

Cleaning, loss masks, rewards and evaluation all read turns through `parse_turn`. It is only ever given what an
assistant said: what a user or a tool says is text, whatever it looks like. How messages become token ids stands in
`stages.agent.conversation.rendering`. Imports nothing heavy.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

Role = Literal["system", "user", "assistant", "tool"]
Fault = Literal["tags", "think", "action", "text", "json"]
"""Why a turn is malformed, see `FAULTS`."""

FAULTS: Final[Mapping[Fault, str]] = {
    "tags": "a tag is unbalanced, repeated or out of order",
    "think": "no <think>…</think> comes first",
    "action": "the thought is not followed by a <tool_call> or an <answer>",
    "text": "there is text outside of the tags",
    "json": 'the tool call is not {"name": "…", "arguments": {…}} in JSON',
}
TAGS: Final = ("think", "tool_call", "answer")
_TAG: Final = re.compile(rf"<(/?(?:{'|'.join(TAGS)}))>")
_TURN: Final = re.compile(
    r"\s*<think>(?P<thought>.*?)</think>\s*"
    r"(?:<tool_call>(?P<call>.*?)</tool_call>|<answer>(?P<answer>.*?)</answer>)\s*",
    re.DOTALL,
)


@dataclass(frozen=True)
class Message:
    """What one side says. `token_ids` of a generated message are the ids as sampled, used in place of encoding it."""

    role: Role
    content: str
    token_ids: tuple[int, ...] = field(default=(), compare=False, repr=False)

    def record(self) -> dict[str, str]:
        """The message as a row of a dataset."""
        return {"role": self.role, "content": self.content}


@dataclass(frozen=True)
class ToolCall:
    """A call by name with JSON arguments."""

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def text(self) -> str:
        """Canonical JSON on one line, equal for equal calls; `<` is escaped, so that no argument can close a tag."""
        name, arguments = (
            json.dumps(value, ensure_ascii=False, allow_nan=False, sort_keys=True)
            for value in (self.name, dict(self.arguments))
        )
        return f'{{"name": {name}, "arguments": {arguments}}}'.replace("<", "\\u003c")


@dataclass(frozen=True)
class Turn:
    """An assistant's turn as parsed: a `call`, an `answer`, or the `fault` that makes it neither."""

    thought: str = ""
    call: ToolCall | None = None
    answer: str | None = None
    fault: Fault | None = None


Ending = Literal["answer", "turns", "window", ""]
"""How an episode ended: with an answer, out of turns, or out of room in the context; "" while it goes on."""


@dataclass(frozen=True)
class Trajectory:
    """A whole conversation about one task, its reward in [0, 1], and how it ended."""

    task: str
    """Id of the task."""
    messages: tuple[Message, ...]
    reward: float = 0.0
    ending: Ending = ""
    question: str = ""
    answers: tuple[str, ...] = ()
    """What counts as right: any of them."""
    kind: str = ""
    """Of the task."""

    @property
    def turns(self) -> tuple[Turn, ...]:
        """The assistant's turns, parsed."""
        return tuple(parse_turn(message.content) for message in self.messages if message.role == "assistant")

    @property
    def answer(self) -> str | None:
        """The final answer, if the last turn gives one."""
        return self.turns[-1].answer if self.turns else None


def parse_turn(content: str) -> Turn:
    """Read an assistant's message. Never raises: a malformed one has a `fault`, and no call or answer."""
    match = _TURN.fullmatch(content) if len(_TAG.findall(content)) == 4 else None
    if match is None:
        return Turn(fault=_diagnose(content))
    thought, body, answer = match["thought"].strip(), match["call"], match["answer"]
    if answer is not None:
        return Turn(thought, answer=answer.strip())
    call = _parse_call(body)
    return Turn(thought, call) if call else Turn(thought, fault="json")


def write_turn(thought: str, action: ToolCall | str) -> str:
    """The content of a turn that calls a tool or answers: `parse_turn` reads back the same, surrounding space aside.

    Raises ValueError when thought or answer hold a tag of the format.
    """
    called = isinstance(action, ToolCall)
    body = f"<tool_call>{action.text()}</tool_call>" if called else f"<answer>{action}</answer>"
    content = f"<think>{thought}</think>\n{body}"
    if fault := parse_turn(content).fault:
        raise ValueError(f"no turn can say this: {FAULTS[fault]}: {content!r}")
    return content


def _diagnose(content: str) -> Fault:
    """What is wrong with a turn that is not of the form."""
    tags = _TAG.findall(content)
    closed = all(close == f"/{opened}" for opened, close in zip(tags[::2], tags[1::2], strict=False))
    if len(tags) % 2 or not closed or len(set(tags)) < len(tags):
        return "tags"
    if tags[:1] != ["think"]:
        return "think"
    return "text" if len(tags) == 4 else "action"


def _parse_call(body: str) -> ToolCall | None:
    try:
        value = json.loads(body, parse_constant=_refuse)
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()  # no infinities, no halves of surrogate pairs
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, dict) or value.keys() != {"name", "arguments"}:
        return None
    name, arguments = value["name"], value["arguments"]
    return ToolCall(name, arguments) if isinstance(name, str) and isinstance(arguments, dict) else None


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")
