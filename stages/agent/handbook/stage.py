"""`agent.handbook`: what a model would do better next time, as a handbook (Metacognitive Reuse, arXiv 2509.13237)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Self

from pydantic import Field

from stages.artifacts import Dataset, Model, Report, write_report
from stages.errors import UserError
from stages.evaluate.matching import require_room
from stages.evaluate.precision import ComputeType
from stages.stage import EXECUTION, Context, Input, Output, Parameters, Stage

if TYPE_CHECKING:
    from stages.agent.handbook.writing import Finding


class HandbookParameters(Parameters):
    """How much work is looked at, and what enters the handbook."""

    trajectories: Annotated[int, Field(ge=1)] | None = None
    """Trajectories to reflect on at most, from the front."""
    tokens: Annotated[int, Field(ge=8)] = 256
    """Tokens of a reflection at most, and of the list of behaviours that follows."""
    window: Annotated[int, Field(ge=64)] = 2048
    """Tokens of the whole conversation at most; longer work is cut."""
    temperature: Annotated[float, Field(ge=0)] = 0.7
    """Of sampling; 0 takes the likeliest token."""
    duplicate_threshold: Annotated[float, Field(gt=0, le=1)] = 0.8
    """A behaviour at least as alike to one in the handbook (cosine of TF-IDF vectors) is a duplicate."""
    dtype: ComputeType = "auto"
    """Type the model computes in."""
    batch_size: Annotated[int, Field(ge=1), EXECUTION] = 8
    """Conversations side by side."""

    def smoke(self) -> Self:
        """Two trajectories, a few tokens each."""
        return self.replaced(trajectories=2, tokens=8)


class AgentHandbook(Stage):
    """Let a model reflect on trajectories, and collect the reusable behaviours that it names.

    For each trajectory it writes a reflection, then a list of behaviours: a name and an instruction of one line. What
    would give an answer away is left out (numbers of the question or the answer, the answer itself, words copied from
    the question), and so is what the handbook says already; each is counted by its reason, with samples. The handbook
    is a `text` dataset; `agent.guide` works with it.
    """

    Params = HandbookParameters
    inputs: ClassVar[Mapping[str, Input]] = {
        "model": Input(Model),
        "trajectories": Input(Dataset, schema="trajectories"),
    }
    outputs: ClassVar[Mapping[str, Output]] = {"handbook": Output(Dataset, schema="text"), "report": Output(Report)}
    metrics = ("behaviours", "proposed", "rejected_*", "tokens_written", "tokens_read")
    paper = "2509.13237"
    params: HandbookParameters

    def check(self, inputs: Mapping[str, Any]) -> None:
        """A window that the model reads, with room for something to reflect on."""
        require_room(inputs["model"], self.params.window)
        if self.params.window <= 2 * self.params.tokens:
            raise UserError(
                f"window: {self.params.window} is filled by two answers of {self.params.tokens} tokens, and leaves no "
                "room for the work that is reflected on",
                fix=f"set window to more than {2 * self.params.tokens}, or lower tokens",
            )

    def run(self, context: Context) -> None:
        """Reflect, check, write."""
        from stages.agent.conversation.records import read_trajectories
        from stages.agent.conversation.rendering import load_renderer
        from stages.agent.handbook.records import write_handbook
        from stages.agent.handbook.writing import Room, reflect
        from stages.agent.rollout.engine import Sampling
        from stages.agent.rollout.opening import open_engine

        params, source, data = self.params, context.model("model"), context.dataset("trajectories")
        trajectories = read_trajectories(data)[: params.trajectories]
        if unknown := sum(not found.answers for found in trajectories):
            context.say(f"{unknown} of {len(trajectories)} trajectories have no answers: what gives one away may stay")
        renderer = load_renderer(source)
        sampling = Sampling(params.temperature)
        found = reflect(
            open_engine("transformers", source, renderer.stop_id, sampling, params.dtype, params.window),
            renderer,
            trajectories,
            Room(params.tokens, params.window),
            threshold=params.duplicate_threshold,
            seed=context.seed,
            batch=params.batch_size,
            progress=context.progress,
        )
        write_handbook(context.output("handbook"), found.handbook, licence=data.card.licence, source=data.card.source)
        self._report(context, found)

    def _report(self, context: Context, found: Finding) -> None:
        from stages.agent.handbook.entries import REJECTIONS
        from stages.agent.handbook.writing import samples, shown

        entries, rejected = found.handbook.entries, {name: len(them) for name, them in found.rejected.items()}
        if not entries:
            context.say("the handbook is empty: prompts with it are prompts without")
        context.metrics(
            behaviours=len(entries),
            proposed=len(entries) + sum(rejected.values()),
            tokens_written=found.tokens_written,
            tokens_read=found.tokens_read,
            **{f"rejected_{name}": count for name, count in rejected.items()},
        )
        details = {
            "parameters": self.params.identity(),
            "seed": context.seed,
            "behaviours": shown(entries, 50),
            "rejected": {REJECTIONS[reason]: texts for reason, texts in samples(found)},
        }
        write_report(context.output("report"), "Handbook", context.results, details)
