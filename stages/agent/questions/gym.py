"""`agent.gym_questions`: tasks of `reasoning-gym`, each proved before it counts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Self

from pydantic import Field

from stages.artifacts import Dataset, Report, write_report
from stages.errors import UserError
from stages.stage import Context, Output, Parameters, Stage

if TYPE_CHECKING:
    from stages.agent.environment.base import Task
    from stages.agent.environment.gym.environment import GymEnvironment
    from stages.agent.questions.gym_selection import GymSelection


class GymQuestionsParameters(Parameters):
    """Which generators, how they are set, and how many tasks of each."""

    tasks: Annotated[dict[str, dict[str, Any]], Field(min_length=1)] = {"chain_sum": {}}
    """Generators of `reasoning-gym` with their settings: `{chain_sum: {max_terms: 3}, maze: {}}`."""
    per_task: Annotated[int, Field(ge=1)] = 500
    """Tasks of each generator at most."""
    partial: bool = False
    """Let part of an answer earn part of the reward, as the generator's scorer says. Those that pay for any answer are
    then refused."""
    heldout_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Share of the tasks to hold out."""

    def smoke(self) -> Self:
        """A few tasks of each generator."""
        return self.replaced(per_task=min(self.per_task, 24), heldout_fraction=0.3)


class AgentGymQuestions(Stage):
    """Make tasks with the generators of `reasoning-gym` and keep those on which its scorer can be relied.

    A task is kept when its own answer gets the full reward and garbage gets none; it is asked once. `agent.evaluate`,
    `agent.rl` and `agent.guide` take the questions without an index: they say themselves which environment they belong
    to. Needs `pip install 'regraft[gym]'`.
    """

    Params = GymQuestionsParameters
    outputs: ClassVar[Mapping[str, Output]] = {
        "train": Output(Dataset, schema="messages"),
        "heldout": Output(Dataset, schema="messages"),
        "report": Output(Report),
    }
    requires: ClassVar[Mapping[str, str]] = {"reasoning_gym": "gym"}
    metrics = ("train_questions", "heldout_questions", "drafts", "rejected_*", "questions_*")
    paper = "2505.24760"
    params: GymQuestionsParameters

    def run(self, context: Context) -> None:
        """Make, prove, split, write."""
        from stages.agent.environment.gym.environment import GymEnvironment
        from stages.agent.questions.gym_selection import GymSelection

        params, wanted = self.params, self.params.per_task * len(self.params.tasks)
        environment = GymEnvironment((), params.tasks, params.partial)
        found = GymSelection(environment, context.seed)
        try:
            for name in params.tasks:
                found.fill(name, params.per_task, lambda kept: context.progress(kept, wanted, "questions"))
        finally:
            environment.gym.close()
        sides = found.split(params.heldout_fraction)
        for name, tasks in sides.items():
            self._write(context, name, tasks, found, environment)
        context.metrics(**found.counts(), **{f"{name}_questions": len(tasks) for name, tasks in sides.items()})
        details = {"parameters": params.identity(), "seed": context.seed, **found.samples()}
        write_report(context.output("report"), "Questions", context.results, details)

    def _write(
        self, context: Context, name: str, tasks: list[Task], found: GymSelection, environment: GymEnvironment
    ) -> None:
        from stages.agent.conversation.records import write_tasks
        from stages.agent.environment.gym.environment import NAME
        from stages.agent.environment.opening import declare

        if not tasks:
            raise UserError(
                f"no questions for {name}: {len(found.kept)} tasks stand, rejected are {found.reasons()}",
                fix="ask for more with `per_task`, or take other `tasks`",
            )
        write_tasks(context.output(name), tasks, licence="apache-2.0", source="reasoning-gym")
        declare(context.output(name), NAME, tasks=dict(environment.settings), partial=environment.partial)
