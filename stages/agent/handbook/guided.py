"""An environment whose prompts carry the behaviours of a handbook that fit the question."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from stages.agent.conversation.messages import Message, Trajectory
from stages.agent.environment.base import Environment, Task, Tool
from stages.agent.handbook.entries import Handbook, with_behaviours


@dataclass(frozen=True)
class Guided(Environment):
    """`environment` in everything but the prompt, which ends its first message with `most` behaviours."""

    environment: Environment
    handbook: Handbook
    most: int

    @property
    def tools(self) -> Mapping[str, Tool]:
        """Those of the environment."""
        return self.environment.tools

    @property
    def tasks(self) -> Sequence[Task]:
        """Those of the environment."""
        return self.environment.tasks

    def reward(self, task: Task, answer: str) -> float:
        """That of the environment."""
        return self.environment.reward(task, answer)

    def success(self, task: Task, answer: str, reward: float) -> bool:
        """That of the environment."""
        return self.environment.success(task, answer, reward)

    def prompt(self, task: Task) -> tuple[Message, ...]:
        """The environment's prompt with behaviours; without any, the same prompt."""
        return with_behaviours(self.environment.prompt(task), self.handbook.retrieve(task.question, self.most))

    def unguided(self, trajectory: Trajectory, task: Task) -> Trajectory:
        """A trajectory as if it had begun without behaviours: what a student learns from."""
        num_prompt = len(self.prompt(task))
        return replace(trajectory, messages=(*self.environment.prompt(task), *trajectory.messages[num_prompt:]))
