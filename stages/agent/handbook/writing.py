"""A model looks back at its work and says which behaviours it lacked; what it says is checked before it is kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from stages.agent.conversation.messages import Message, Trajectory
from stages.agent.conversation.rendering import Renderer
from stages.agent.environment.base import Task
from stages.agent.handbook.entries import Behaviour, Handbook, Rejection, parse_behaviours, rejection
from stages.agent.rollout.engine import Engine, Request
from stages.agent.rollout.rollouts import as_message
from stages.errors import UserError
from stages.seeds import derived_seed

REFLECT: Final = (
    "Below is how an assistant worked on a question with tools. Reflect on it: was the answer right, which steps were "
    "needless, and which reusable skills would have made the work shorter or right? A skill is a note on how to go "
    "about any such question, not the solution of this one."
)
NAME_THEM: Final = (
    "Now write these skills down, one a line and nothing else, each as\n"
    "behavior_<short_name>: one sentence that says what to do and when\n"
    "Leave out names, numbers and anything else that belongs to this question alone."
)

SAMPLES: Final = 5
"""Rejected entries shown for each reason."""
LEAST_WORK: Final = 64
"""Tokens of work below which there is nothing to reflect on."""


@dataclass(frozen=True)
class Room:
    """How much the model may write and read."""

    tokens: int
    """Of a reflection, and of a list of behaviours."""
    window: int
    """Of the whole conversation; the work that is reflected on is cut to fit."""


@dataclass
class Finding:
    """The handbook so far, what did not enter it and why, and the tokens it took."""

    handbook: Handbook = field(default_factory=Handbook)
    rejected: dict[Rejection, list[Behaviour]] = field(default_factory=dict)
    tokens_written: int = 0
    tokens_read: int = 0

    def offer(self, behaviour: Behaviour, task: Task, threshold: float) -> None:
        """Keep a behaviour, or count why not."""
        reason: Rejection | None = rejection(behaviour, task)
        if reason is None and self.handbook.says(behaviour, threshold):
            reason = "duplicate"
        if reason:
            self.rejected.setdefault(reason, []).append(behaviour)
        else:
            self.handbook = self.handbook.with_entry(behaviour)


def reflect(
    engine: Engine,
    renderer: Renderer,
    trajectories: Sequence[Trajectory],
    room: Room,
    *,
    threshold: float,
    seed: int,
    batch: int,
    progress: Callable[[float, float, str], None] = lambda *_: None,
) -> Finding:
    """Reflect on every trajectory, `batch` side by side, which decides nothing; entries in their order."""
    found = Finding()
    for start in range(0, len(trajectories), batch):
        part = trajectories[start : start + batch]
        asked = [_opening(renderer, trajectory, room) for trajectory in part]
        seeds = [derived_seed(seed, start + number) for number in range(len(part))]
        thoughts = _answers(engine, renderer, asked, room.tokens, [derived_seed(s, "reflect") for s in seeds], found)
        asked = [(*a, thought, Message("user", NAME_THEM)) for a, thought in zip(asked, thoughts, strict=True)]
        lists = _answers(engine, renderer, asked, room.tokens, [derived_seed(s, "name") for s in seeds], found)
        for trajectory, message in zip(part, lists, strict=True):
            task = Task(trajectory.task, _question(trajectory), trajectory.answers, kind=trajectory.kind)
            for behaviour in parse_behaviours(message.content):
                found.offer(behaviour, task, threshold)
        progress(min(start + batch, len(trajectories)), len(trajectories), "trajectories")
    return found


def _question(trajectory: Trajectory) -> str:
    """What was asked: where a trajectory does not say, what the user says first."""
    said = (message.content for message in trajectory.messages if message.role == "user")
    return trajectory.question or next(said, "")


def _opening(renderer: Renderer, trajectory: Trajectory, room: Room) -> tuple[Message, ...]:
    """The request to reflect, with as much of the work, from its beginning, as leaves room for both answers.

    Raises UserError where hardly any of it fits.
    """
    work = "\n\n".join(f"{m.role}: {m.content}" for m in trajectory.messages if m.role != "system")
    shell = (Message("system", REFLECT), Message("user", ""), Message("assistant", ""), Message("user", NAME_THEM))
    left = room.window - len(renderer.encode(shell, open_turn=True).ids) - 2 * room.tokens
    if left < LEAST_WORK:
        raise UserError(
            f"window: {room.window} leaves {left} tokens for the work that is reflected on, beside the instructions "
            f"and two answers of {room.tokens} tokens; expected {LEAST_WORK} or more",
            fix=f"set window to {room.window - left + LEAST_WORK} or more, or lower tokens",
        )
    while (length := len(renderer.encode_text(work))) > left:
        work = work[: int(len(work) * min(0.95, left / length))]
    return Message("system", REFLECT), Message("user", work)


def _answers(
    engine: Engine,
    renderer: Renderer,
    asked: Sequence[tuple[Message, ...]],
    max_tokens: int,
    seeds: Sequence[int],
    found: Finding,
) -> list[Message]:
    contexts = [renderer.encode(messages, open_turn=True).ids for messages in asked]
    engine.forget()
    requests = [
        Request(number, ids, seed, max_tokens) for number, (ids, seed) in enumerate(zip(contexts, seeds, strict=True))
    ]
    messages = []
    for ids, written in zip(contexts, engine.write(requests), strict=True):
        messages.append(as_message(renderer, written))
        found.tokens_read += len(ids)
        found.tokens_written += len(written.ids)
    engine.forget()
    return messages


def shown(behaviours: Sequence[Behaviour], most: int) -> list[str]:
    """The first of them as texts, for a report."""
    return [behaviour.text for behaviour in behaviours[:most]]


def samples(found: Finding) -> Iterator[tuple[Rejection, list[str]]]:
    """A few of the rejected entries for each reason."""
    for reason, behaviours in found.rejected.items():
        yield reason, shown(behaviours, SAMPLES)
