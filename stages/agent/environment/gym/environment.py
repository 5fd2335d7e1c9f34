"""The environment of `reasoning-gym` tasks (arXiv 2505.24760): a question, an answer, and no tools."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any, Final

from stages.agent.conversation.messages import Message
from stages.agent.conversation.records import read_tasks
from stages.agent.environment.base import Environment, Task, Tool
from stages.agent.environment.gym.process import Gym
from stages.artifacts import Dataset
from stages.errors import UserError

NAME: Final = "reasoning_gym"
PROMPT: Final = "Answer the question, with one thought before:\n<think>…</think>\n<answer>…</answer>"


@dataclass(frozen=True)
class GymEnvironment(Environment):
    """Tasks whose answers are scored by the generator that made them.

    Many scorers give part of the reward to a part of the answer, some a little to any answer at all. With `partial`
    that is the reward; otherwise it is 1 for a full score and 0 for any other.
    """

    tasks: Sequence[Task]
    settings: Mapping[str, Mapping[str, Any]]
    """Of each generator, by its name."""
    partial: bool = False
    gym: Gym = field(default_factory=Gym)
    tools: Mapping[str, Tool] = field(default_factory=dict)

    def reward(self, task: Task, answer: str) -> float:
        """The score, see the class."""
        entry = json.loads(task.data)
        score = self.gym.score(task.kind, dict(self.settings[task.kind]), entry, answer)
        return score if self.partial else float(score >= 1)

    def prompt(self, task: Task) -> tuple[Message, ...]:
        """The form of a turn, and the question."""
        return Message("system", PROMPT), Message("user", task.question)


def open_gym(questions: Dataset, settings: Mapping[str, Any]) -> GymEnvironment:
    """The environment of questions that `agent.gym_questions` made. Raises UserError without `reasoning-gym`."""
    if find_spec("reasoning_gym") is None:
        raise UserError("the questions are of reasoning-gym, which is missing", fix="pip install 'regraft[gym]'")
    return GymEnvironment(tuple(read_tasks(questions)), settings["tasks"], settings["partial"])
