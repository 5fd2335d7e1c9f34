"""`agent.report_rl`: a writer of reports learns from single actions or from whole reports (arXiv 2602.06540)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from stages.agent.rl.settings import PolicyParameters
from stages.agent.rl.stage import AgentLearn
from stages.artifacts import Dataset, Model
from stages.evaluate.matching import require_tokenizer
from stages.stage import EXECUTION, Context, Input

if TYPE_CHECKING:
    from stages.agent.environment.base import Environment


class ReportLearningParameters(PolicyParameters):
    """How a writer learns. `window` is of one action, its prompt included: a report of any length fits."""

    questions: Annotated[int, Field(ge=1)] = 8
    """Exercises or topics in a step; each is asked once before any is asked again."""
    rollouts: Annotated[int, Field(ge=2)] = 4
    """Rollouts of each, which are compared with each other; the paper takes 8 for single actions."""
    turn_tokens: Annotated[int, Field(ge=2)] = 256
    """Tokens of an action at most, its thought included."""
    window: Annotated[int, Field(ge=16)] = 2048
    """Tokens of an action at most, prompt included; a report whose next prompt is longer ends there."""
    micro_batch: Annotated[int, Field(ge=1), EXECUTION] = 1
    """Rollouts in one backward pass of an update; of reports each action has a forward pass of its own."""


class AgentReportLearn(AgentLearn):
    """Improve a writer of reports by reinforcement learning, in the environment of an index and what is asked about it.

    What is asked decides what a rollout is. Exercises (of `agent.report_expert`) are single actions in given states,
    each rewarded by its skill's rule: planning, retrieval, writing, decision. Topics (of `agent.report_topics`) are
    whole reports, rewarded by the judge; one that is not terminated earns nothing. Rewards are compared within the
    rollouts of a task, as in GRPO, and that advantage is the one of every action of a report. Without a `judge`,
    a rule that counts judges. With `heldout` the report tells the distance to the parent.
    """

    Params = ReportLearningParameters
    inputs: ClassVar[Mapping[str, Input]] = {
        "model": Input(Model),
        "index": Input(Dataset, schema="text"),
        "tasks": Input(Dataset, schema="messages"),
        "judge": Input(Model, optional=True),
        "reference": Input(Model, optional=True),
        "heldout": Input(Dataset, schema="tokens", optional=True),
    }
    paper = "2602.06540"
    asked = "tasks"

    def environment(self, context: Context) -> Callable[[], Environment]:
        """What opens the environment, on every worker."""
        from stages.agent.report.worlds import open_tasks

        index, tasks = context.dataset("index"), context.dataset("tasks")
        return partial(open_tasks, index, tasks, context.inputs.get("judge"))

    def check(self, inputs: Mapping[str, Any]) -> None:
        """As for `agent.rl`; a judge with a tokenizer; and tasks that are topics or exercises, with their rules."""
        from stages.agent.report.records import holds_topics
        from stages.agent.report.rules import Rules

        super().check(inputs)
        require_tokenizer(inputs.get("judge"), where="judge")
        holds_topics(inputs["tasks"])
        Rules.read(inputs["tasks"])
