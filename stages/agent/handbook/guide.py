"""`agent.guide`: an agent at work with a handbook, and trajectories to learn the same without it (arXiv 2509.13237)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from stages.agent.evaluate.scores import FIGURES, figures
from stages.agent.evaluate.stage import AgentEvaluate, AgentEvaluateParameters
from stages.artifacts import Dataset, Model, Report, write_report
from stages.stage import Context, Input, Output, Stage

if TYPE_CHECKING:
    from stages.agent.evaluate.scores import Outcome


class GuideParameters(AgentEvaluateParameters):
    """As for `agent.evaluate`, and how much of the handbook a prompt holds."""

    behaviours: Annotated[int, Field(ge=1)] = 8
    """Entries of the handbook in a prompt at most: those most alike to the question."""


class AgentGuide(Stage):
    """Let a model work on questions with the behaviours of a handbook in its prompt, and beside that without.

    The figures of `agent.evaluate` with the handbook, and of the same questions and seeds without it as `plain_…`;
    `tokens` are those that the model wrote for a question, `total_tokens` also those that it read. The trajectories are
    those with the handbook, their prompts without it: fine-tuned on them (`agent.clean`, `agent.sft`), a model learns
    to behave so unasked.
    """

    Params = GuideParameters
    inputs: ClassVar[Mapping[str, Input]] = {
        "model": Input(Model),
        "index": Input(Dataset, schema="text", optional=True),
        "questions": Input(Dataset, schema="messages"),
        "handbook": Input(Dataset, schema="text"),
    }
    outputs: ClassVar[Mapping[str, Output]] = {
        "trajectories": Output(Dataset, schema="trajectories"),
        "report": Output(Report),
    }
    metrics = (*FIGURES, "plain_*", "tokens_saved")
    paper = "2509.13237"
    params: GuideParameters

    def check(self, inputs: Mapping[str, Any]) -> None:
        """As for `agent.evaluate`."""
        AgentEvaluate(self.params).check(inputs)

    def run(self, context: Context) -> None:
        """Work with the handbook and without, report, write what can be learnt from."""
        from stages.agent.conversation.records import write_trajectories
        from stages.agent.conversation.rendering import load_renderer
        from stages.agent.environment.opening import open_environment
        from stages.agent.evaluate.playing import play_questions
        from stages.agent.handbook.guided import Guided
        from stages.agent.handbook.records import read_handbook
        from stages.agent.rollout.engine import Sampling
        from stages.agent.rollout.opening import open_engine

        params, source = self.params, context.model("model")
        handbook = read_handbook(context.dataset("handbook"))
        environment = open_environment(context.dataset("questions"), context.inputs.get("index"))
        guided = Guided(environment, handbook, params.behaviours)
        renderer = load_renderer(source, params.template)
        sampling = Sampling(params.temperature, params.top_p)
        engine = open_engine(params.engine, source, renderer.stop_id, sampling, params.dtype, params.window)
        plain, found = (play_questions(context, engine, world, renderer, params) for world in (environment, guided))
        tasks, card = {task.id: task for task in environment.tasks}, context.dataset("questions").card
        learnt = [guided.unguided(one.trajectory, tasks[one.trajectory.task]) for one in found]
        write_trajectories(context.output("trajectories"), learnt, licence=card.licence, source=card.source)
        context.metrics(**_compared(found, plain))
        details = {"parameters": params.identity(), "behaviours": len(handbook.entries)}
        write_report(context.output("report"), "Guided by a handbook", context.results, details)


def _compared(guided: list[Outcome], plain: list[Outcome]) -> dict[str, float]:
    """Figures with the handbook and without; `tokens_saved` is the share of written tokens that it spares."""
    with_it, without = figures(guided), figures(plain)
    saved = 1 - with_it["tokens"] / without["tokens"] if without["tokens"] else 0.0
    return {**with_it, **{f"plain_{name}": value for name, value in without.items()}, "tokens_saved": saved}
