"""The cleaning of trajectories, step by step as DR-Venus does it (arXiv 2604.19859, section on data). Pure.

    align        names of roles, tools and arguments become the environment's, and so does what the system says
    disallowed   calls of tools that the environment lacks are taken out, each with what it gave
    duplicates   so are calls made before
    structure    what is left is system, user, then calls and results by turns, then an answer; else it is dropped
    correctness  the answer is right; else it is dropped
    repeated     a trajectory equal to an earlier one is dropped
    resample     long trajectories count several times

Every trajectory dropped and every call taken out is counted in a `Ledger` with its reason and a sample. Cleaning what
is clean changes nothing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from stages.agent.conversation.messages import FAULTS, Message, ToolCall, Trajectory, parse_turn, write_turn
from stages.agent.environment.answers import exact_match
from stages.agent.environment.base import Tool, system_prompt

ROLES: Final[Mapping[str, str]] = {
    "human": "user",
    "gpt": "assistant",
    "model": "assistant",
    "function": "tool",
    "observation": "tool",
    "environment": "tool",
    "ipython": "tool",
}
"""Names that other formats give to roles."""
SAMPLES: Final = 2
_SAMPLE_CHARACTERS: Final = 300
_WRAPPED: Final = re.compile(r"\s*<tool_response>\n?(.*?)\n?</tool_response>\s*", re.DOTALL)
_CALL: Final = re.compile(r"<tool_call>(.*?)</tool_call>", re.DOTALL)


@dataclass(frozen=True)
class Rules:
    """What a clean trajectory is, and how often it counts."""

    tools: Mapping[str, Tool]
    """Those of the environment. Where it has none, its own prompt stays, and right is what got the full reward."""
    tool_names: Mapping[str, str] = field(default_factory=dict)
    """Other names of tools."""
    argument_names: Mapping[str, str] = field(default_factory=dict)
    """Other names of arguments, under the tool's own name: `visit.url` → `id`."""
    resample: Sequence[tuple[int, int]] = ((50, 2), (100, 5))
    """(n, k): a trajectory of more than n turns counts k times; the last that fits holds."""


@dataclass
class Ledger:
    """What was taken out, by reason: how many trajectories and calls, and some samples."""

    trajectories: dict[str, int] = field(default_factory=dict)
    """Dropped, or for calls taken out: touched."""
    calls: dict[str, int] = field(default_factory=dict)
    samples: dict[str, list[str]] = field(default_factory=dict)
    aligned: int = 0
    """Trajectories that alignment changed."""

    def note(self, reason: str, trajectory: Trajectory, sample: str, calls: int = 0) -> None:
        """Count one trajectory under `reason`."""
        self.trajectories[reason] = self.trajectories.get(reason, 0) + 1
        self.calls[reason] = self.calls.get(reason, 0) + calls
        kept = self.samples.setdefault(reason, [])
        if len(kept) < SAMPLES:
            kept.append(f"{trajectory.task}: {sample}"[:_SAMPLE_CHARACTERS])


def clean(trajectories: Sequence[Trajectory], rules: Rules) -> tuple[list[Trajectory], Ledger]:
    """The clean trajectories in their order, copies of one next to each other, and what was taken out."""
    ledger, kept, seen = Ledger(), list[Trajectory](), set[tuple[Message, ...]]()
    for found in trajectories:
        aligned = align(found, rules)
        ledger.aligned += aligned != found
        allowed = _without_calls(aligned, lambda call, _: call.name not in rules.tools, "disallowed tool", ledger)
        single = _without_calls(allowed, lambda call, made: call.text() in made, "duplicate call", ledger)
        if problem := structure_problem(single) or _wrong(single, rules):
            ledger.note(problem[0], single, problem[1])
        elif single.messages in seen:
            ledger.note("repeated trajectory", single, single.question)
        else:
            seen.add(single.messages)
            kept += [single] * copies(len(single.turns), rules.resample)
    return kept, ledger


def copies(num_turns: int, resample: Sequence[tuple[int, int]]) -> int:
    """How often a trajectory of that many turns counts."""
    return next((times for least, times in sorted(resample, reverse=True) if num_turns > least), 1)


def align(trajectory: Trajectory, rules: Rules) -> Trajectory:
    """The trajectory in the environment's words."""
    said = [_align_message(message, number, rules) for number, message in enumerate(trajectory.messages)]
    if not rules.tools:
        return replace(trajectory, messages=tuple(said))
    prompt = Message("system", system_prompt(rules.tools))
    rest = said[1:] if said and said[0].role == "system" else said
    return replace(trajectory, messages=(prompt, *rest))


def structure_problem(trajectory: Trajectory) -> tuple[str, str] | None:
    """The first thing that is not as it should be, with the place; None for a sound trajectory."""
    roles = [message.role for message in trajectory.messages]
    num_calls = max(0, len(roles) - 3) // 2
    expected = ["system", "user", *["assistant", "tool"] * num_calls, "assistant"]
    turns = trajectory.turns
    for message, turn in zip((m for m in trajectory.messages if m.role == "assistant"), turns, strict=True):
        if turn.fault:
            return f"malformed turn: {FAULTS[turn.fault]}", message.content
    if not turns or turns[-1].answer is None:
        return "no answer at the end", trajectory.messages[-1].content if roles else ""
    if roles != expected or any(turn.call is None for turn in turns[:-1]):
        return "roles out of order", " ".join(roles)
    return None


def _wrong(trajectory: Trajectory, rules: Rules) -> tuple[str, str] | None:
    """A wrong answer; where words do not say what is right, one that got less than the full reward."""
    answer, by_words = trajectory.answer or "", bool(rules.tools and trajectory.answers)
    right = exact_match(answer, trajectory.answers) if by_words else trajectory.reward >= 1
    return None if right else ("wrong answer", f"{answer!r}, not {' or '.join(trajectory.answers) or 'rewarded'}")


def _without_calls(
    trajectory: Trajectory, is_out: Callable[[ToolCall, set[str]], bool], reason: str, ledger: Ledger
) -> Trajectory:
    """The trajectory without the turns whose call is out, and without what those gave."""
    kept: list[Message] = []
    made: set[str] = set()
    removed: list[str] = []
    skipping = False
    for message in trajectory.messages:
        call = parse_turn(message.content).call if message.role == "assistant" else None
        if call and is_out(call, made):
            removed.append(call.text())
            skipping = True
        elif not (skipping and message.role == "tool"):
            kept.append(message)
            skipping = False
        if call:
            made.add(call.text())
    if not removed:
        return trajectory
    ledger.note(reason, trajectory, removed[0], len(removed))
    return replace(trajectory, messages=tuple(kept))


def _align_message(message: Message, number: int, rules: Rules) -> Message:
    role: Any = ROLES.get(message.role, message.role)
    wrapped = _WRAPPED.fullmatch(message.content)
    if wrapped and (role == "tool" or (role == "user" and number > 1)):
        return Message("tool", wrapped[1])
    return Message(role, _align_turn(message.content, rules) if role == "assistant" else message.content)


def _align_turn(content: str, rules: Rules) -> str:
    """A turn's call in the environment's names; whatever cannot be read so stays as it is."""
    found = _CALL.search(content)
    call = _any_call(found[1]) if found else None
    if found is None or call is None:
        return content
    name = rules.tool_names.get(call.name, call.name)
    arguments = {rules.argument_names.get(f"{name}.{key}", key): value for key, value in call.arguments.items()}
    if (name, arguments) == (call.name, call.arguments) and parse_turn(content).call:
        return content
    aligned = (
        content[: found.start()] + f"<tool_call>{ToolCall(name, arguments).text()}</tool_call>" + content[found.end() :]
    )
    turn = parse_turn(aligned)
    return write_turn(turn.thought, turn.call) if turn.call else content


def _any_call(body: str) -> ToolCall | None:
    """A call as other formats write it: arguments under another name, or as a text of JSON."""
    try:
        value = json.loads(body)
        arguments = next((value[key] for key in ("arguments", "parameters", "args") if key in value), {})
        arguments = json.loads(arguments) if isinstance(arguments, str) else arguments
        call = ToolCall(value["name"], dict(arguments))
        call.text().encode()
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    return call if isinstance(call.name, str) and all(isinstance(key, str) for key in call.arguments) else None
