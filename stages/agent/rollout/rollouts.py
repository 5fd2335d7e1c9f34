"""Rollouts: episodes written by an engine, as the very tokens that were sampled, with their log-probabilities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from stages.agent.conversation.messages import Message, Trajectory
from stages.agent.conversation.rendering import Renderer
from stages.agent.environment.base import Environment, Runner, Task
from stages.agent.environment.episodes import AnyEpisode, Limits, play
from stages.agent.rollout.engine import Engine, Request, Written
from stages.seeds import derived_seed


@dataclass(frozen=True)
class Room:
    """How much a policy may write."""

    turns: int
    """Turns of a rollout at most."""
    turn_tokens: int
    """Tokens of a turn at most, its stop token included."""
    window: int
    """Tokens of a whole rollout at most, the prompt and what tools said included."""


@dataclass(frozen=True)
class Rollout:
    """A trajectory and its tokens [L], up to the end of its last turn."""

    trajectory: Trajectory
    counts: Mapping[str, int]
    """Of turns, calls, malformed turns and failed calls, see `Episode`."""
    ids: list[int]
    turn_of: list[int]
    """The turn (from 0) in which the policy sampled a token; -1 for every other token."""
    logp: list[float]
    """Log-probability under the policy that sampled it, nats; 0 for other tokens."""
    starts: list[int]
    """Where each turn begins: what stands before, in its conversation, is all that the policy knew then."""
    begins: list[int]
    """Where each conversation begins. Most rollouts are one; where there are several, none sees another."""
    rows: list[Trajectory]
    """The conversations, a trajectory each: what becomes of the rollout in a dataset."""

    @property
    def num_turns(self) -> int:
        """Turns of the policy."""
        return len(self.starts)

    @property
    def num_sampled(self) -> int:
        """Tokens that the policy sampled."""
        return sum(turn >= 0 for turn in self.turn_of)

    @property
    def positions(self) -> list[int]:
        """The place of each token in its own conversation."""
        return [place for begin, end in pairwise([*self.begins, len(self.ids)]) for place in range(end - begin)]

    @property
    def cut(self) -> bool:
        """Whether it ended for want of turns or room, without an answer."""
        return self.trajectory.ending != "answer"


@dataclass
class EngineWriter:
    """Writes the turns of episodes with an engine, and keeps what was sampled. A `Writer` for `play`."""

    engine: Engine
    renderer: Renderer
    room: Room
    seeds: Mapping[int, int]
    """Of each episode by `id(episode)`."""
    written: dict[int, list[Written]] = field(default_factory=dict)

    def __call__(self, episodes: Sequence[AnyEpisode]) -> list[Message | None]:
        """The next message of each episode; None where the window is full."""
        contexts = [self.renderer.encode(episode.messages, open_turn=True).ids for episode in episodes]
        asked = [index for index, ids in enumerate(contexts) if len(ids) < self.room.window]
        requests = [self._request(episodes[index], contexts[index]) for index in asked]
        messages: list[Message | None] = [None] * len(episodes)
        for index, written in zip(asked, self.engine.write(requests) if requests else [], strict=True):
            self.written.setdefault(id(episodes[index]), []).append(written)
            messages[index] = as_message(self.renderer, written)
        return messages

    def _request(self, episode: AnyEpisode, ids: list[int]) -> Request:
        key = id(episode)
        seed = derived_seed(self.seeds[key], len(self.written.get(key, ())))
        return Request(key, ids, seed, min(self.room.turn_tokens, self.room.window - len(ids)))


def succeeds(environment: Environment, task: Task, rollout: Rollout) -> bool:
    """Whether a rollout of `task` ended with an answer that is right."""
    answer, reward = rollout.trajectory.answer, rollout.trajectory.reward
    return answer is not None and not rollout.cut and environment.success(task, answer, reward)


def roll_out(
    engine: Engine,
    environment: Environment,
    tools: Runner,
    renderer: Renderer,
    tasks: Sequence[Task],
    seeds: Sequence[int],
    room: Room,
) -> list[Rollout]:
    """One rollout of each task, all side by side; `seeds` decide what is drawn in each, whatever the others do."""
    episodes = [environment.episode(task, Limits(room.turns)) for task in tasks]
    return write_episodes(engine, episodes, tools, renderer, seeds, room)


def write_episodes(
    engine: Engine,
    episodes: Sequence[AnyEpisode],
    tools: Runner,
    renderer: Renderer,
    seeds: Sequence[int],
    room: Room,
) -> list[Rollout]:
    """Write episodes that have not begun to their ends, and give the rollout of each."""
    by_episode = {id(episode): seed for episode, seed in zip(episodes, seeds, strict=True)}
    writer = EngineWriter(engine, renderer, room, by_episode)
    engine.forget()
    trajectories = play(episodes, writer, tools)
    engine.forget()
    return [
        as_rollout(renderer, episode, trajectory, writer.written.get(id(episode), []))
        for episode, trajectory in zip(episodes, trajectories, strict=True)
    ]


def as_message(renderer: Renderer, written: Written) -> Message:
    """A turn as the assistant's message: without the token that ends it, and with the ids as sampled."""
    content = written.ids[:-1] if written.stopped else written.ids
    return Message("assistant", renderer.decode(content), tuple(content))


def as_rollout(renderer: Renderer, episode: AnyEpisode, trajectory: Trajectory, written: Sequence[Written]) -> Rollout:
    """The tokens of an episode, conversation after conversation, whose turns were sampled as `written`."""
    rollout = Rollout(trajectory, dict(episode.counts), [], [], [], [], [], episode.rows(trajectory))
    left = iter(written)
    for messages in episode.conversations:
        encoded = renderer.encode(messages)
        spans = [span for span in encoded.spans if span.role == "assistant"]
        end = spans[-1].stop if spans else len(encoded.ids)
        begin = len(rollout.ids)
        rollout.begins.append(begin)
        rollout.ids.extend(encoded.ids[:end])
        rollout.turn_of.extend([-1] * end)
        rollout.logp.extend([0.0] * end)
        for span in spans:
            _put(rollout, next(left), begin + span.first, span.last - span.first, begin + span.stop)
    return rollout


def _put(rollout: Rollout, sampled: Written, first: int, num_content: int, stop: int) -> None:
    """Mark a turn's own tokens: its content, and the token that ends it where the policy itself drew that.

    The template closes every turn; only a token that was drawn there is one of the policy's actions.
    """
    length = len(sampled.ids) if stop == first + len(sampled.ids) else num_content
    rollout.turn_of[first : first + length] = [rollout.num_turns] * length
    rollout.logp[first : first + length] = sampled.logp[:length]
    rollout.starts.append(first)
