"""`agent.report`: a model writes reports on topics, and what they are worth."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import Field

from stages.artifacts import Dataset, Model, Report, write_report
from stages.evaluate.matching import require_room, require_tokenizer
from stages.evaluate.precision import ComputeType
from stages.stage import EXECUTION, Context, Input, Output, Parameters, Stage

if TYPE_CHECKING:
    from stages.agent.conversation.rendering import Renderer
    from stages.agent.report.episode import ReportEnvironment
    from stages.agent.report.scores import Scored
    from stages.agent.rollout.engine import Engine


class ReportParameters(Parameters):
    """How many reports, and how much room the model has for an action."""

    topics: Annotated[int, Field(ge=1)] | None = None
    """Topics at most, from the front."""
    temperature: Annotated[float, Field(ge=0)] = 0.0
    """Of sampling; 0 takes the likeliest token."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Sample from the likeliest tokens that have this much probability together."""
    turn_tokens: Annotated[int, Field(ge=1)] = 256
    """Tokens of an action at most, its thought included; one that is cut off is malformed."""
    window: Annotated[int, Field(ge=16)] = 2048
    """Tokens of an action at most, prompt included; a report whose next prompt is longer ends there."""
    template: Literal["model", "plain"] = "model"
    """The tokenizer's own chat template, or the plain one."""
    dtype: ComputeType = "auto"
    """Type the model computes in."""
    tool_seconds: Annotated[float, Field(gt=0), EXECUTION] = 30
    """Seconds that a search may take."""
    batch_size: Annotated[int, Field(ge=1), EXECUTION] = 8
    """Reports side by side."""

    def smoke(self) -> Self:
        """Two reports of short turns."""
        return self.replaced(topics=2, turn_tokens=min(self.turn_tokens, 16))


class AgentReport(Stage):
    """Let a model write reports on topics over an index, and measure what they are worth and what they took.

    Ratings are the judge's, 1 to 5, of every report as it stands when it is over; `score` is their mean in [0, 1], and
    0 for a report that the model did not terminate itself. Beside them: the share of the checklist's documents that a
    report cites (`recall`), documents that it cites and never found (`unfounded`), expansions, actions, turns refused
    or malformed, words and tokens. The reports are Markdown files in `report`; `trajectories` has every turn.
    """

    Params = ReportParameters
    inputs: ClassVar[Mapping[str, Input]] = {
        "model": Input(Model),
        "index": Input(Dataset, schema="text"),
        "topics": Input(Dataset, schema="messages"),
        "judge": Input(Model, optional=True),
    }
    outputs: ClassVar[Mapping[str, Output]] = {
        "report": Output(Report),
        "trajectories": Output(Dataset, schema="trajectories"),
    }
    metrics = (
        *("score", "score_stderr", "comprehensiveness", "insight", "instruction", "readability"),
        *("finished", "recall", "unfounded", "sections", "words", "expansions", "actions"),
        *("refused", "malformed", "failed_calls", "tokens"),
    )
    paper = "2602.06540"
    params: ReportParameters

    def check(self, inputs: Mapping[str, Any]) -> None:
        """Model and judge have a tokenizer, the model a context that holds the window; the topics are topics."""
        from stages.agent.report.records import read_topics
        from stages.agent.report.rules import Rules

        require_room(inputs["model"], self.params.window)
        require_tokenizer(inputs.get("judge"), where="judge")
        Rules.read(inputs["topics"])
        read_topics(inputs["topics"])

    def run(self, context: Context) -> None:
        """Write, rate, keep."""
        from stages.agent.conversation.records import write_trajectories
        from stages.agent.conversation.rendering import load_renderer
        from stages.agent.report.episode import step_trajectories
        from stages.agent.report.scores import means, tables
        from stages.agent.report.view import markdown
        from stages.agent.report.worlds import open_reports
        from stages.agent.rollout.engine import Sampling
        from stages.agent.rollout.opening import open_engine

        params, source, topics = self.params, context.model("model"), context.dataset("topics")
        environment = open_reports(context.dataset("index"), topics, context.inputs.get("judge"))
        renderer = load_renderer(source, params.template)
        sampling = Sampling(params.temperature, params.top_p)
        engine = open_engine("transformers", source, renderer.stop_id, sampling, params.dtype, params.window)
        scored = self._write(context, engine, environment, renderer)
        context.metrics(**means(scored))
        report = context.output("report")
        details = {"parameters": params.identity(), "seed": context.seed, **tables(scored)}
        write_report(report, "Reports", context.results, details)
        for one in scored:
            text = markdown(one.episode.state)
            (report / f"{one.episode.topic.id}.md").write_text(text, encoding="utf-8")
        steps = [step for one in scored for step in step_trajectories(one.episode.topic, one.episode.steps, one.score)]
        card = topics.card
        write_trajectories(context.output("trajectories"), steps, licence=card.licence, source=card.source)

    def _write(
        self, context: Context, engine: Engine, environment: ReportEnvironment, renderer: Renderer
    ) -> list[Scored]:
        from stages.agent.environment.episodes import Limits
        from stages.agent.environment.toolbox import Toolbox
        from stages.agent.report.scores import Scored
        from stages.agent.rollout.rollouts import Room, write_episodes
        from stages.seeds import derived_seed

        params, tasks = self.params, list(environment.tasks)[: self.params.topics]
        room = Room(1, params.turn_tokens, params.window)
        scored: list[Scored] = []
        with Toolbox(environment.tools, params.tool_seconds) as tools:
            for start in range(0, len(tasks), params.batch_size):
                part = tasks[start : start + params.batch_size]
                episodes = [environment.episode(task, Limits()) for task in part]
                seeds = [derived_seed(context.seed, task.id) for task in part]
                rollouts = write_episodes(engine, episodes, tools, renderer, seeds, room)
                for episode, rollout in zip(episodes, rollouts, strict=True):
                    scored.append(Scored.of(episode, environment.judge, rollout.num_sampled))
                context.progress(len(scored), len(tasks), "reports")
        return scored
