"""Episodes: one conversation of a model with an environment, and the loop that runs many of them.

Collecting, evaluating and reinforcement learning run the same loop, `play`, over the same `Episode`; only who writes
differs. Whatever a model writes and whatever a tool does is data: nothing here raises for it. `prove` tells without a
model whether an environment is in order.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, Protocol, TypeVar

from stages.agent.conversation.messages import FAULTS, Ending, Message, ToolCall, Trajectory, parse_turn, write_turn
from stages.agent.environment.base import Environment, Observation, Runner, Task

GARBAGE: Final = ("", "I do not know.", "<answer>x</answer>", write_turn("", ""), write_turn("", "qxz qxz"))
"""Turns that no task rewards."""


@dataclass(frozen=True)
class Limits:
    """Where an episode ends without an answer."""

    turns: int = 8
    """Turns of the assistant at most, malformed ones included."""


class AnyEpisode(Protocol):
    """What the loop asks of an episode: see `Episode` for the usual one."""

    counts: Counter[str]

    @property
    def over(self) -> bool:
        """Whether nothing more is asked of the model."""
        ...

    @property
    def messages(self) -> Sequence[Message]:
        """What the next turn is written after."""
        ...

    @property
    def conversations(self) -> Sequence[Sequence[Message]]:
        """What was said: one conversation, or several where an environment begins anew."""
        ...

    def write(self, content: str, token_ids: Sequence[int] = ()) -> ToolCall | None:
        """Take the model's turn; a call that is returned waits for `observe`."""
        ...

    def observe(self, observation: Observation) -> None:
        """Take the result of the call that `write` returned."""
        ...

    def stop(self, ending: Ending) -> None:
        """End the episode from outside."""
        ...

    def trajectory(self) -> Trajectory:
        """What was said so far with its reward."""
        ...

    def rows(self, whole: Trajectory) -> list[Trajectory]:
        """The `conversations`, a trajectory each, where `whole` is all of them: what becomes of them in a dataset."""
        ...


@dataclass
class Episode:
    """One conversation about one task. Its state is its messages; the counts are read off them as they come."""

    environment: Environment
    task: Task
    limits: Limits = field(default_factory=Limits)
    messages: list[Message] = field(default_factory=list)
    ending: Ending = ""
    counts: Counter[str] = field(default_factory=Counter)
    """`turns`, `calls` (that ran), `malformed`, and `failed_<failure>` of tool calls."""

    def __post_init__(self) -> None:
        self.messages = list(self.environment.prompt(self.task))

    @property
    def conversations(self) -> Sequence[Sequence[Message]]:
        """The one there is."""
        return [self.messages]

    @property
    def over(self) -> bool:
        """Whether nothing more is asked of the model."""
        return bool(self.ending)

    def write(self, content: str, token_ids: Sequence[int] = ()) -> ToolCall | None:
        """Take the model's turn. A call is returned and waits for `observe`.

        A malformed turn is answered by what is wrong with it. `token_ids` are kept with the message.
        """
        assert not self.over, "the episode is over"
        turn = parse_turn(content)
        self.messages.append(Message("assistant", content, tuple(token_ids)))
        self.counts["turns"] += 1
        if turn.answer is not None:
            self.ending = "answer"
        elif self.counts["turns"] >= self.limits.turns:
            self.ending = "turns"
        if turn.fault:
            self.counts["malformed"] += 1
            self._say(f"Error: {FAULTS[turn.fault]}.")
        if turn.call is None or self.over:
            return None
        self.counts["calls"] += 1
        return turn.call

    def observe(self, observation: Observation) -> None:
        """Take the result of the call that `write` returned."""
        if observation.failure:
            self.counts[f"failed_{observation.failure}"] += 1
        self._say(observation.text)

    def stop(self, ending: Ending) -> None:
        """End the episode from outside, for want of room in the context."""
        self.ending = ending

    def trajectory(self) -> Trajectory:
        """The conversation so far with its reward: that of the answer, 0 without one."""
        task = self.task
        found = Trajectory(task.id, tuple(self.messages), 0.0, self.ending, task.question, task.answers, task.kind)
        answer = found.answer
        return found if answer is None else replace(found, reward=self.environment.reward(task, answer))

    def rows(self, whole: Trajectory) -> list[Trajectory]:
        """The one there is."""
        return [whole]

    def _say(self, text: str) -> None:
        if not self.over:
            self.messages.append(Message("tool", text))


E = TypeVar("E", bound=AnyEpisode)
Writer = Callable[[Sequence[E]], Sequence[Message | None]]
"""Writes the next turn of each episode at once; None for one that has no room left in the context."""


def play(episodes: Sequence[E], write: Writer[E], tools: Runner) -> list[Trajectory]:
    """Run episodes to their ends, all live ones a turn at a time, so that writing and tools work in batches."""
    while live := [episode for episode in episodes if not episode.over]:
        waiting: list[tuple[E, ToolCall]] = []
        for episode, message in zip(live, write(live), strict=True):
            if message is None:
                episode.stop("window")
            elif call := episode.write(message.content, message.token_ids):
                waiting.append((episode, call))
        for (episode, _), observation in zip(waiting, tools.call([call for _, call in waiting]), strict=True):
            episode.observe(observation)
    return [episode.trajectory() for episode in episodes]


def scripted(turns: Sequence[str]) -> Writer[AnyEpisode]:
    """A writer that says the same turns in every episode, one after another."""
    return lambda episodes: [Message("assistant", turns[episode.counts["turns"]]) for episode in episodes]


def prove(environment: Environment, tools: Runner) -> list[str]:
    """What is wrong with an environment, as far as its own solutions can tell; nothing when it is in order.

    The solution of every task, followed by any of its answers, has to get the full reward without a failed call, and
    garbage none.
    """
    problems: list[str] = []
    for task in environment.tasks:
        for answer in task.answers:
            calls = [write_turn("", call) for call in task.solution]
            episode = Episode(environment, task, Limits(len(calls) + 1))
            (played,) = play([episode], scripted([*calls, write_turn("", answer)]), tools)
            failures = {name: count for name, count in episode.counts.items() if name.startswith("failed_")}
            if played.reward < 1 or failures:
                problems.append(
                    f"task {task.id}: its solution gets {played.reward:.3g} for {answer!r} {failures or ''}"
                )
        for text in GARBAGE:
            episode = Episode(environment, task, Limits(1))
            (played,) = play([episode], scripted([text]), tools)
            if played.reward > 0:
                problems.append(f"task {task.id}: garbage gets {played.reward:.3g}: {text!r}")
    return problems
