"""`agent.evaluate`: what an agent gets done, and at what cost, on questions it has not seen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from stages.agent.evaluate.scores import FIGURES
from stages.agent.rollout.opening import EngineName
from stages.artifacts import Dataset, Model, Report, write_report
from stages.evaluate.matching import require_room
from stages.evaluate.precision import ComputeType
from stages.stage import EXECUTION, Context, Input, Output, Parameters, Stage


class AgentEvaluateParameters(Parameters):
    """How many questions, how often, and how much room the model has."""

    questions: Annotated[int, Field(ge=1)] | None = None
    """Questions at most, from the front."""
    seeds: Annotated[tuple[int, ...], Field(min_length=1)] = (0,)
    """Every question is asked once with each; figures are means over them."""
    temperature: Annotated[float, Field(ge=0)] = 0.0
    """Of sampling; 0 takes the likeliest token, and then one seed is enough."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Sample from the likeliest tokens that have this much probability together."""
    turns: Annotated[int, Field(ge=1)] = 8
    """Turns of an episode at most."""
    turn_tokens: Annotated[int, Field(ge=1)] = 128
    """Tokens of a turn at most; one that is cut off is malformed."""
    window: Annotated[int, Field(ge=16)] = 1024
    """Tokens of an episode at most, prompt and results of tools included."""
    template: Literal["model", "plain"] = "model"
    """The tokenizer's own chat template, or the plain one."""
    dtype: ComputeType = "auto"
    """Type the model computes in."""
    engine: EngineName = "transformers"
    """What writes the turns. `vllm` needs a CUDA device and vLLM; it draws other tokens from a seed."""
    tool_seconds: Annotated[float, Field(gt=0), EXECUTION] = 30
    """Seconds that tools have to answer; one that does not is an error for the model to read."""
    batch_size: Annotated[int, Field(ge=1), EXECUTION] = 8
    """Episodes side by side."""

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds: {list(self.seeds)} repeat")
        if self.temperature == 0 and len(self.seeds) > 1:
            raise ValueError("seeds: at temperature 0 all seeds give the same: set a temperature, or one seed")
        return self

    def smoke(self) -> Self:
        """Two questions, two short turns."""
        room = {"turns": min(self.turns, 2), "turn_tokens": min(self.turn_tokens, 8)}
        return self.replaced(questions=2, **room)


class AgentEvaluate(Stage):
    """Let a model work on questions in their environment; measure what it gets done and what that takes.

    With the tools of an index, success is an exact match with the answer and F1 counts words in common; elsewhere
    success is the full reward, and F1 the mean reward. Both are 0 without an answer. Beside them: tool calls, turns,
    tokens that the model wrote (`total_tokens`: and read), the share of well-formed turns, and the share of episodes
    that ended with an answer. The report holds them by seed and by kind of question, and a page to read trajectories
    on; the trajectories themselves are a dataset that `agent.clean` takes.
    """

    Params = AgentEvaluateParameters
    inputs: ClassVar[Mapping[str, Input]] = {
        "model": Input(Model),
        "index": Input(Dataset, schema="text", optional=True),
        "questions": Input(Dataset, schema="messages"),
    }
    outputs: ClassVar[Mapping[str, Output]] = {
        "report": Output(Report),
        "trajectories": Output(Dataset, schema="trajectories"),
    }
    metrics = (*FIGURES, "success_*")
    params: AgentEvaluateParameters

    def check(self, inputs: Mapping[str, Any]) -> None:
        """The model has a tokenizer, a context that holds the window, and the questions their environment."""
        from stages.agent.environment.opening import check_index

        check_index(inputs)
        require_room(inputs["model"], self.params.window)

    def run(self, context: Context) -> None:
        """Load, play, score, report."""
        from stages.agent.conversation.records import write_trajectories
        from stages.agent.conversation.rendering import load_renderer
        from stages.agent.environment.opening import open_environment
        from stages.agent.evaluate.figure import draw_outcomes
        from stages.agent.evaluate.page import write_page
        from stages.agent.evaluate.playing import play_questions
        from stages.agent.evaluate.scores import summary
        from stages.agent.rollout.engine import Sampling
        from stages.agent.rollout.opening import open_engine

        params, source = self.params, context.model("model")
        environment = open_environment(context.dataset("questions"), context.inputs.get("index"))
        renderer = load_renderer(source, params.template)
        sampling = Sampling(params.temperature, params.top_p)
        engine = open_engine(params.engine, source, renderer.stop_id, sampling, params.dtype, params.window)
        outcomes = play_questions(context, engine, environment, renderer, params)
        figures, details = summary(outcomes)
        context.metrics(**figures)
        report = context.output("report")
        write_report(report, "Agent", figures, {"parameters": params.identity(), **details})
        write_page(report / "trajectories.html", outcomes)
        draw_outcomes(report / "outcomes.svg", details)
        found, card = [outcome.trajectory for outcome in outcomes], context.dataset("questions").card
        write_trajectories(context.output("trajectories"), found, licence=card.licence, source=card.source)
