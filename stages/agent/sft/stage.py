"""`agent.sft`: fine-tune a model on trajectories, on what the assistant says and nothing else."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import Field

from stages.artifacts import Dataset, Model, Report, write_report
from stages.errors import UserError
from stages.evaluate.matching import require_given_tokens, require_room
from stages.stage import Context, Input, Output, Stage
from stages.training.preflight import require_training_tools
from stages.training.settings import TRAINED, TrainingParameters

if TYPE_CHECKING:
    from stages.agent.conversation.rendering import Renderer
    from stages.agent.sft.packing import Packed


class SftParameters(TrainingParameters):
    """How to fine-tune. The default learning rate is that of DR-Venus."""

    learning_rate: Annotated[float, Field(gt=0, le=1)] = 1e-5
    """Peak learning rate of AdamW; adapters want about ten times as much."""
    epochs: Annotated[float, Field(gt=0)] | None = 1.0
    """Times through the trajectories; with null, `tokens` says how long to train instead."""
    window: Annotated[int, Field(ge=16)] = 1024
    """Tokens of a row. A trajectory that is longer is left out and counted."""
    packing: bool = True
    """Whether short trajectories share a row, without seeing each other."""
    template: Literal["model", "plain"] = "model"
    """The tokenizer's own chat template, or a plain one that any tokenizer with an end-of-text token can use. A
    tokenizer without a template gets the plain one; the model is saved with the template it was trained with."""
    lora_rank: Annotated[int, Field(ge=0)] = 0
    """Rank of adapters on all linear layers (arXiv 2106.09685), merged at the end; 0 trains every weight."""
    lora_alpha: Annotated[float, Field(gt=0)] = 32
    """Adapters are scaled by `lora_alpha / lora_rank`."""
    heldout_windows: Annotated[int, Field(ge=1)] = 128
    """Windows of the input `heldout` that the distance to the parent is measured on."""

    def smoke(self) -> Self:
        """A few steps."""
        return (
            super()
            .smoke()
            .replaced(epochs=None, tokens=4096, batch_sequences=2, heldout_windows=min(self.heldout_windows, 4))
        )


class AgentSft(Stage):
    """Fine-tune on trajectories by cross-entropy of the assistant's tokens: its turns and the token that ends each.

    What a token is, and whose, follows from the chat template's spans, never from searching text. With `validation`,
    other trajectories, the report tells loss and top-1 accuracy on their assistant's tokens; with `heldout`, packed
    text, the distance to the parent.
    """

    Params = SftParameters
    inputs: ClassVar[Mapping[str, Input]] = {
        "model": Input(Model),
        "trajectories": Input(Dataset, schema="trajectories"),
        "validation": Input(Dataset, schema="trajectories", optional=True),
        "heldout": Input(Dataset, schema="tokens", optional=True),
    }
    outputs: ClassVar[Mapping[str, Output]] = {"model": Output(Model), "report": Output(Report)}
    distributed = True
    isolated = True
    metrics = (*TRAINED, "validation_*", "trajectories", "too_long", "target_share", "fill")
    paper = "2604.19859"
    params: SftParameters

    def preflight(self) -> None:
        """The packages that training imports are there."""
        require_training_tools()
        if self.params.lora_rank and importlib.util.find_spec("peft") is None:
            raise UserError("lora_rank needs peft, which is not installed", fix="pip install peft, or set lora_rank: 0")

    def check(self, inputs: Mapping[str, Any]) -> None:
        """The model has a tokenizer, that of the held-out text, and its context holds a row."""
        model: Model = inputs["model"]
        require_room(model, self.params.window)
        if self.params.packing and any(_has_states(graft) for graft in model.grafts):
            raise UserError(
                "packing: true, and the model has linear heads: their states run on into the next conversation",
                fix="set packing: false, which gives each conversation a row",
            )
        require_given_tokens(model, inputs, ("heldout",))

    def run(self, context: Context) -> None:
        """Encode, pack, train, save, measure, report."""
        from stages.agent.conversation.rendering import load_renderer
        from stages.agent.sft.recipe import FineTuning, Lora
        from stages.training.launch import run_training

        params, model = self.params, context.model("model")
        renderer = load_renderer(model, params.template)
        packed, counts = self._pack(context, "trajectories", renderer)
        settings = params
        if params.epochs is not None:
            settings = params.replaced(tokens=max(1, round(params.epochs * packed.ids.size)))
        recipe = FineTuning(
            model=model,
            rows=self._rows(context, "trajectories"),
            validation=self._pack_validation(context, renderer),
            heldout=context.inputs.get("heldout"),
            heldout_windows=params.heldout_windows,
            cache=context.scratch / "windows",
            template=renderer.template,
            lora=Lora(params.lora_rank, params.lora_alpha, context.seed) if params.lora_rank else None,
            measure_batch=params.micro_batch,
            out=context.output("model"),
        )
        result = run_training(recipe, settings, context)
        figures = {**result.figures, **counts}
        context.metrics(**figures, **result.cost)
        details = result.details(params, context.seed)
        write_report(context.output("report"), "Fine-tuning on trajectories", figures, details)

    def _pack_validation(self, context: Context, renderer: Renderer) -> Path | None:
        if context.inputs.get("validation") is None:
            return None
        self._pack(context, "validation", renderer)
        return self._rows(context, "validation")

    def _rows(self, context: Context, name: str) -> Path:
        return context.scratch / "rows" / name

    def _pack(self, context: Context, name: str, renderer: Renderer) -> tuple[Packed, dict[str, float]]:
        """Write the rows of an input; with them some figures of it."""
        from stages.agent.conversation.records import read_trajectories
        from stages.agent.sft.packing import Conversation, pack
        from stages.training.cross_entropy import IGNORED

        encoded = [renderer.encode(found.messages) for found in read_trajectories(context.dataset(name))]
        if not encoded:
            raise UserError(
                f"{context.dataset(name).path} has no trajectories", where=name, fix="give some to learn from"
            )
        fit = [Conversation(e.ids, e.loss_mask()) for e in encoded if len(e.ids) <= self.params.window]
        if not fit:
            shortest = min(len(e.ids) for e in encoded)
            raise UserError(
                f"none of {len(encoded)} {name} fits window: {self.params.window}; the shortest has {shortest} tokens",
                fix="widen window, or clean the trajectories of those that ramble",
            )
        packed = pack(fit, self.params.window, renderer.pad_id, several=self.params.packing)
        packed.save(self._rows(context, name))
        targets, filled = int((packed.labels != IGNORED).sum()), sum(len(c.ids) for c in fit)
        if not targets:
            raise UserError(
                f"in none of {len(fit)} {name} the assistant says anything",
                where=name,
                fix="give conversations with messages of the role assistant; `agent.clean` translates other names",
            )
        too_long = len(encoded) - len(fit)
        if too_long:
            context.say(f"{too_long} of {len(encoded)} {name} exceed window: {self.params.window} and are left out")
        figures = {
            "trajectories": float(len(fit)),
            "too_long": float(too_long),
            "target_share": targets / filled,
            "fill": filled / packed.ids.size,
        }
        return packed, figures


def _has_states(graft: Mapping[str, Any]) -> bool:
    return graft["name"] == "hybrid_heads" and graft.get("others", "gated_deltanet") == "gated_deltanet"
