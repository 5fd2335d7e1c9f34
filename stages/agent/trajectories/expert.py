"""A scripted expert: the solution of a task as turns of an assistant, with errors on demand."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Final

from stages.agent.conversation.messages import Message, ToolCall, Trajectory, write_turn
from stages.agent.environment.base import Environment, Runner, Task
from stages.agent.environment.episodes import Episode, Limits, play
from stages.errors import UserError

WRONG: Final = "I am not sure"
BATCH: Final = 64


@dataclass(frozen=True)
class Errors:
    """Share of trajectories with each error, in [0, 1]."""

    detour: float = 0.0
    repeat: float = 0.0
    foreign: float = 0.0
    malformed: float = 0.0
    wrong: float = 0.0

    def draw(self, rng: random.Random) -> list[str]:
        """The errors of one trajectory."""
        return [field.name for field in fields(self) if rng.random() < getattr(self, field.name)]


def script(task: Task, errors: Sequence[str], rng: random.Random) -> list[str]:
    """The expert's turns on `task`, in order. Raises UserError for a task without a solution."""
    if not task.solution:
        raise UserError(f"question {task.id} has no solution to play", fix="collect on questions of `agent.questions`")
    thoughts = task.thoughts or ("",) * (len(task.solution) + 1)
    turns = [write_turn(thought, call) for thought, call in zip(thoughts[:-1], task.solution, strict=True)]
    place = rng.randrange(len(turns))
    for error in errors:
        match error:
            case "detour":
                query = " ".join(task.question.split()[:6])
                turns.insert(0, write_turn("I look for the question itself.", ToolCall("search", {"query": query})))
            case "repeat":
                turns.insert(place, turns[place])
            case "foreign":
                turns.insert(place, write_turn("I compute.", ToolCall("python", {"code": "print(1)"})))
            case "malformed":
                turns.insert(place, turns[place].replace("<think>", "", 1))
    turns.append(write_turn(thoughts[-1], WRONG if "wrong" in errors else task.answers[0]))
    return turns


def collect(
    environment: Environment,
    tools: Runner,
    errors: Errors,
    per_task: int,
    seed: int,
    progress: Callable[[float, float, str], None] = lambda *_: None,
) -> tuple[list[Trajectory], Counter[str]]:
    """Trajectories of the expert on every task, and how many have each error; a function of the seed and the task."""
    made, scripts = Counter[str](), list[tuple[Task, list[str]]]()
    for task in environment.tasks:
        for number in range(per_task):
            rng = random.Random(f"{seed}/{number}/{task.id}")
            drawn = errors.draw(rng)
            made.update(drawn)
            scripts.append((task, script(task, drawn, rng)))
    found: list[Trajectory] = []
    for start in range(0, len(scripts), BATCH):
        found += _play(environment, tools, scripts[start : start + BATCH])
        progress(len(found), len(scripts), "trajectories")
    return found, made


def _play(environment: Environment, tools: Runner, scripts: Sequence[tuple[Task, list[str]]]) -> list[Trajectory]:
    episodes = [Episode(environment, task, Limits(len(turns))) for task, turns in scripts]
    turns_of = {id(episode): turns for episode, (_, turns) in zip(episodes, scripts, strict=True)}

    def write(live: Sequence[Episode]) -> list[Message]:
        return [Message("assistant", turns_of[id(episode)][episode.counts["turns"]]) for episode in live]

    return play(episodes, write, tools)
