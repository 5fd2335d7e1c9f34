"""`compress.fold`: drop the layers that gates close, and let neighbours among the others share weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from stages.artifacts import Dataset, Model, Report, write_report
from stages.errors import UserError
from stages.evaluate.matching import require_given_tokens, text_config
from stages.stage import Context, Input, Output, Stage
from stages.training.checks import check_plain, check_supported
from stages.training.preflight import require_training_tools
from stages.training.schedule import Schedule
from stages.training.settings import TRAINED, TrainingParameters


class FoldParameters(TrainingParameters):
    """How many layers go, how many share, and how the gates are trained."""

    removed_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.2
    """Share of the layers that goes; the first and the last stay."""
    group: Annotated[int, Field(ge=1)] = 1
    """Neighbours among the layers that stay which share one set of weights, norms and biases aside; 1: none do."""
    initialisation: Literal["lower", "average"] = "lower"
    """What shared weights start as: those of the first of the group, or their mean."""
    rank: Annotated[int, Field(ge=0)] = 0
    """Rank of the difference that each layer of a group keeps of its own at every linear; 0: none, as in the paper."""
    polarisation: Annotated[float, Field(ge=0)] = 5.0
    """Weight of what drives gates to 0 or 1, in nats a token, at the end; it rises from 0."""
    budget: Annotated[float, Field(ge=0)] = 40.0
    """Weight of the squared distance of the mean gate from the share of layers that stays, in nats a token."""
    tokens: Annotated[int, Field(ge=1)] = 65_536
    """Tokens to train the gates on; rounded up to whole steps."""
    learning_rate: Annotated[float, Field(gt=0, le=1)] = 0.1
    """Peak learning rate of the gates."""
    schedule: Schedule = "constant"
    """Shape after the warm-up, see `distill.logits`; a falling one stops the gates while polarisation rises."""
    heldout_windows: Annotated[int, Field(ge=1)] = 32
    """Windows of `heldout` on which the distance to the model is measured."""

    @model_validator(mode="after")
    def _recomputes_nothing(self) -> FoldParameters:
        if self.activation_checkpointing:
            raise ValueError("activation_checkpointing: only gates train, they recompute nothing; lower micro_batch")
        return self

    def num_kept(self, num_layers: int) -> int:
        """Layers that stay of so many, at least 2."""
        return max(2, round(num_layers * (1 - self.removed_fraction)))

    def smoke(self) -> Self:
        """A few steps, with layers that a small model can spare."""
        windows = min(self.heldout_windows, 2)
        return super().smoke().replaced(heldout_windows=windows, group=min(self.group, 2), rank=min(self.rank, 4))

    def smaller(self, workers: int) -> Self | None:  # noqa: ARG002
        """Half the micro-batch, down to one sequence: beside the frozen model there is nothing to share out."""
        return self.replaced(micro_batch=self.micro_batch // 2) if self.micro_batch > 1 else None


class CompressFold(Stage):
    """Train a gate for each layer of the frozen model, drop the layers with the lowest, share weights among the others.

    FoldGPT, reconstructed. The result is a model of the same class, or with `group` a grafted one; nothing but gates is
    trained, so let `distill.logits` heal it, with `hidden_weight` and `tail_layers` for the paper's tail-layer loss.
    """

    Params = FoldParameters
    inputs: ClassVar[Mapping[str, Input]] = {
        "model": Input(Model),
        "data": Input(Dataset, schema="tokens"),
        "heldout": Input(Dataset, schema="tokens", optional=True),
    }
    outputs: ClassVar[Mapping[str, Output]] = {"model": Output(Model), "report": Output(Report)}
    distributed = True
    isolated = True
    metrics = ("layers", "parameters", "parameters_ratio", "gates_decided", *TRAINED)
    paper = "2407.00928"
    params: FoldParameters

    def preflight(self) -> None:
        """The packages that training imports are there."""
        require_training_tools()

    def check(self, inputs: Mapping[str, Any]) -> None:
        """A standard model with layers to spare, which divide into groups."""
        model: Model = inputs["model"]
        check_plain("model", model, "its layers cannot be dropped or shared", fix="fold first")
        fix = "take a model of one of these, or `depth_fraction` of `distill.logits`, which takes any"
        check_supported(model, "layers", fix=fix)
        if self.params.group > 1:
            _check_one_kind(model.config)
        num_layers = text_config(model.config)["num_hidden_layers"]
        num_kept = self.params.num_kept(num_layers)
        if num_layers < 2:
            raise UserError(f"the model has {num_layers} layer, nothing can be dropped", fix="take a deeper one")
        if num_kept % self.params.group:
            fitting = ", ".join(str(n) for n in range(2, num_layers + 1) if n % self.params.group == 0)
            share = f"choose removed_fraction so that one of {fitting} stays, or another group"
            raise UserError(
                f"{num_kept} of {num_layers} layers stay, which do not divide into groups of {self.params.group}",
                fix=share if fitting else f"set a group of {num_layers} or less",
            )
        require_given_tokens(model, inputs)

    def run(self, context: Context) -> None:
        """Train gates, drop, share, save, measure and report."""
        from grafts.arithmetic import dtype_name
        from stages.compress.folding import Folding
        from stages.training.launch import run_training
        from stages.training.precision import settled, torch_dtype

        dtype = torch_dtype(settled(self.params.precision, gpus=context.resources.gpus > 0))
        # Gates go on beside the arithmetic that they began with, and `auto` may be another on the next machine.
        apart = replace(context, scratch=context.scratch / dtype_name(dtype))
        recipe = Folding.of(self.params, apart, dtype)
        result = run_training(recipe, self.params.model_copy(update={"precision": "fp32"}), apart)
        context.metrics(**result.figures, **result.cost)
        chosen = json.loads(recipe.chosen.read_text(encoding="utf-8"))
        details = {**chosen, **result.details(self.params, context.seed), "computed_in": dtype_name(dtype)}
        write_report(context.output("report"), "Folding of layers", result.figures, details)


def _check_one_kind(config: Mapping[str, Any]) -> None:
    """Any two layers can share weights: gates say only later which do."""
    kinds = set(config.get("layer_types") or ())
    if len(kinds) > 1:
        raise UserError(
            f"neighbours cannot share weights: the layers are of several kinds, {' and '.join(sorted(kinds))}",
            fix="set `group: 1`",
        )
