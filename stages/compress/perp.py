"""`compress.perp`: retrain a pruned model in a small share of its parameters, and keep it pruned."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Final, Literal, Self

from pydantic import Field, model_validator

from stages.artifacts import Dataset, Model, Report, write_report
from stages.compress.mask_file import require_masks
from stages.errors import UserError
from stages.evaluate.matching import first_difference, require_given_tokens, require_one_vocabulary, text_config
from stages.stage import Context, Input, Output, Stage
from stages.training.preflight import require_training_tools
from stages.training.schedule import Schedule
from stages.training.settings import TRAINED, TrainingParameters

LINEARS: Final = ("model_type", "num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads")
"""Fields of a config that decide which linears there are, and their shapes."""
DERIVED: Final = ("num_key_value_heads", "head_dim")
"""More of them, which a config may leave out where they follow from the others."""


class PerpParameters(TrainingParameters):
    """What is retrained. The defaults are the authors', a budget of tokens aside."""

    objective: Literal["text", "layers"] = "text"
    """What adapters learn: to predict the text, or each alone to give what its linear gave in `parent`."""
    vectors: bool = True
    """Train norms and biases; unused by `layers`."""
    adapter: Literal["none", "mask_lora", "scale_lora", "lora_prune", "full"] = "mask_lora"
    """What trains beside each pruned linear: low-rank changes of the weights that stayed (`mask_lora`), factors on them
    (`scale_lora`), plain LoRA that is pruned again at the end (`lora_prune`, which loses what it learnt there), or
    nothing. `full`: every weight that stayed, which is what the few are compared with."""
    rank: Annotated[int, Field(ge=1)] = 16
    """Rank of the adapters."""
    alpha: Annotated[float, Field(gt=0)] = 32.0
    """The adapters' product counts `alpha / rank` times; unused by `scale_lora`."""
    learning_rate: Annotated[float, Field(gt=0, le=1)] = 5e-4
    """Peak learning rate of AdamW."""
    schedule: Schedule = "linear"
    """Shape after the warm-up."""
    heldout_windows: Annotated[int, Field(ge=1)] = 32
    """Windows of `heldout` on which the distance to `parent` is measured."""

    @model_validator(mode="after")
    def _trains_some(self) -> PerpParameters:
        if not self.vectors and self.adapter == "none":
            raise ValueError("vectors: false and adapter: none leave nothing to train; set one of them")
        if self.objective == "layers" and self.adapter in ("none", "full"):
            raise ValueError(f"objective: layers fits adapters, and adapter: {self.adapter} has none; choose one")
        if self.objective == "layers" and self.activation_checkpointing:
            raise ValueError("activation_checkpointing: layers are fitted one by one; lower micro_batch")
        return self

    def smaller(self, workers: int) -> Self | None:
        """As for all training; linears that are fitted one by one have no activations to recompute."""
        if self.objective == "text" or self.micro_batch > 1:
            return super().smaller(workers)
        return self.replaced(zero_stage=self.zero_stage + 1) if workers > 1 and self.zero_stage < 3 else None

    def smoke(self) -> Self:
        """A few steps at a low rank."""
        return super().smoke().replaced(rank=min(self.rank, 4), heldout_windows=min(self.heldout_windows, 2))


class CompressPerp(Stage):
    """Retrain norms, biases and low-rank adapters of a pruned model on text, and merge them into the pruned weights.

    Parameter-efficient retraining after pruning. What was pruned stays pruned, to the bit. The result is a model of the
    same class with the same masks. With `heldout` the report tells the distance to `parent`, the model before pruning.
    """

    Params = PerpParameters
    inputs: ClassVar[Mapping[str, Input]] = {
        "model": Input(Model),
        "parent": Input(Model, optional=True),
        "data": Input(Dataset, schema="tokens"),
        "heldout": Input(Dataset, schema="tokens", optional=True),
    }
    outputs: ClassVar[Mapping[str, Output]] = {"model": Output(Model), "report": Output(Report)}
    distributed = True
    isolated = True
    metrics = ("sparsity", "initial_layer_error", "layer_error", "trained_parameters", "trained_share", *TRAINED)
    paper = "2312.15230"
    params: PerpParameters

    def preflight(self) -> None:
        """The packages that training imports are there."""
        require_training_tools()

    def check(self, inputs: Mapping[str, Any]) -> None:
        """The model says what was pruned, the data is its own, the parent has its vocabulary."""
        require_masks(inputs["model"].path)
        if self.params.objective == "layers" and inputs.get("parent") is None:
            raise UserError(
                "`objective: layers` fits what linears gave before pruning, and that model is not given",
                fix="give the model before pruning as input `parent`",
            )
        if inputs.get("parent") is not None:
            require_one_vocabulary(inputs["parent"], inputs["model"], ("parent", "model"))
            if self.params.objective == "layers":
                _check_same_linears(inputs["parent"], inputs["model"])
        require_given_tokens(inputs["model"], inputs)

    def run(self, context: Context) -> None:
        """Train, merge, save with masks, measure and report."""
        from stages.compress.reconstruction import Reconstruction
        from stages.compress.retraining import Retraining
        from stages.training.launch import run_training

        kind = Reconstruction if self.params.objective == "layers" else Retraining
        recipe = kind.of(self.params, context)
        result = run_training(recipe, self.params, context)
        context.metrics(**result.figures, **result.cost)
        details = result.details(self.params, context.seed)
        write_report(context.output("report"), "Retraining after pruning", result.figures, details)


def _check_same_linears(parent: Model, model: Model) -> None:
    """Every linear of the model is there in its parent, in the same shape."""
    configs = [text_config(each.config) for each in (parent, model)]
    said = [name for name in DERIVED if all(config.get(name) is not None for config in configs)]
    if differs := first_difference(parent, model, (*LINEARS, *said)):
        name, theirs, ours = differs
        raise UserError(
            f"linears are fitted to those of `parent`: it has {name} {theirs}, the pruned model {ours}",
            where="parent",
            fix="give the model that was pruned, or set `objective: text`",
        )
