"""`agent.report_expert`: a scripted expert's reports, cut at their best drafts, as steps to learn from."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Self

from pydantic import Field

from stages.artifacts import Dataset, Model, Report, write_report
from stages.errors import UserError
from stages.evaluate.matching import require_tokenizer
from stages.stage import EXECUTION, Context, Input, Output, Parameters, Stage

if TYPE_CHECKING:
    from stages.agent.report.expert import Work


class ExpertParameters(Parameters):
    """What becomes of the expert's work."""

    margin: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """A later draft counts as better when its score, in [0, 1], is higher by more than this: for judges with noise."""
    exercise_share: Annotated[float, Field(ge=0, lt=1)] = 0.2
    """Share of the topics whose steps become exercises for reinforcement learning; the others are for fine-tuning.
    0: no exercises. Above it, where too few topics are left on a side, all of them are on it."""
    balance: Annotated[float, Field(ge=1)] = 2.0
    """No action counts more than this many times as often as the rarest; without it, most of all steps are writing."""
    tool_seconds: Annotated[float, Field(gt=0), EXECUTION] = 30
    """Seconds that a search may take."""

    def smoke(self) -> Self:
        """The same: a script takes no time."""
        return self.replaced(exercise_share=0.5)


class AgentReportExpert(Stage):
    """Let an expert that knows the checklists write reports, and keep what a student should see of them.

    It deepens on, beyond what serves the report, and every draft is scored before each decision: a report is cut at its
    best draft, and the decision there becomes to terminate. Steps are conversations of one turn each (`steps`, for
    `agent.sft`), balanced over actions; those on a share of the topics become `exercises`, single actions with a
    reward each, for `agent.report_rl`. The searches really run. Without a `judge`, drafts are scored by rule.
    """

    Params = ExpertParameters
    inputs: ClassVar[Mapping[str, Input]] = {
        "index": Input(Dataset, schema="text"),
        "topics": Input(Dataset, schema="messages"),
        "judge": Input(Model, optional=True),
    }
    outputs: ClassVar[Mapping[str, Output]] = {
        "steps": Output(Dataset, schema="trajectories"),
        "exercises": Output(Dataset, schema="messages"),
        "report": Output(Report),
    }
    metrics = ("reports", "score", "forced_score", "expansions", "steps_written", "steps", "exercises")
    paper = "2602.06540"
    params: ExpertParameters

    def check(self, inputs: Mapping[str, Any]) -> None:
        """A judge has a tokenizer."""
        require_tokenizer(inputs.get("judge"), where="judge")

    def run(self, context: Context) -> None:
        """Write, cut, balance, hand out."""
        from stages.agent.environment.toolbox import Toolbox
        from stages.agent.questions.selected import is_heldout
        from stages.agent.report.expert import work
        from stages.agent.report.view import markdown
        from stages.agent.report.worlds import open_reports

        params, topics = self.params, context.dataset("topics")
        environment = open_reports(context.dataset("index"), topics, context.inputs.get("judge"))
        with Toolbox(environment.tools, params.tool_seconds) as tools:
            found = work(environment, tools, params.margin, context.progress)
        if not found:
            raise UserError(
                f"on none of {len(environment.topics)} topics did the expert finish a draft within "
                f"{environment.limits.steps} actions",
                fix="raise `actions` of `agent.report_topics`",
            )
        practised = [is_heldout(one.topic.id, params.exercise_share) for one in found]
        shown = [one for one, is_practised in zip(found, practised, strict=True) if not is_practised] or found
        asked = [one for one, is_practised in zip(found, practised, strict=True) if is_practised]
        counts = self._write(context, shown, asked or (found if params.exercise_share else []))
        context.metrics(
            reports=len(found),
            score=_mean([one.score for one in found]),
            forced_score=_mean([one.scores[-1] for one in found]),
            expansions=_mean([one.report.expansions for one in found]),
            steps_written=sum(one.num_forced for one in found),
            **{name: float(sum(counted.values())) for name, counted in counts.items()},
        )
        details = {"parameters": params.identity(), "seed": context.seed, **counts, "sample": markdown(found[0].report)}
        write_report(context.output("report"), "Reports of an expert", context.results, details)

    def _write(self, context: Context, shown: Sequence[Work], practised: Sequence[Work]) -> dict[str, dict[str, int]]:
        """Write steps and exercises; how many there are of each action and skill."""
        from stages.agent.conversation.records import write_trajectories
        from stages.agent.report.exercises import exercises
        from stages.agent.report.pruning import balanced
        from stages.agent.report.records import write_exercises
        from stages.agent.report.rules import Rules

        rng, card = random.Random(context.seed), context.dataset("topics").card
        about = {"licence": card.licence, "source": card.source}
        every = [step for one in shown for step in one.trajectories()]
        steps = balanced(every, lambda step: step.kind, self.params.balance, rng)
        write_trajectories(context.output("steps"), steps, **about)
        rules = Rules.read(context.dataset("topics"))
        tasks = [exercise for one in practised for exercise in exercises(one, rules.text)]
        tasks = balanced(tasks, lambda task: task.skill, self.params.balance, rng)
        write_exercises(context.output("exercises"), tasks, **about)
        rules.write(context.output("exercises"))
        context.say(f"{len(steps)} of {len(every)} steps, {len(tasks)} exercises")
        return {
            "steps": dict(Counter(step.kind for step in steps)),
            "exercises": dict(Counter[str](task.skill for task in tasks)),
        }


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
