"""`distill.recursive`: a model becomes a block of layers that runs several times, and learns to be itself again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from stages.artifacts import Dataset, Model, write_report
from stages.distill.logits import DistillLogits
from stages.distill.settings import DistillParameters
from stages.errors import UserError
from stages.evaluate.matching import text_config
from stages.stage import Context, Input
from stages.training.checks import check_plain, check_supported
from stages.training.settings import TRAINED


class RecursiveParameters(DistillParameters):
    """What is looped, how it starts, and how it is taught."""

    loops: Annotated[int, Field(ge=1)] = 2
    """How often the block runs; the layers between `begin` and `end` must divide into that many."""
    begin: Annotated[int, Field(ge=0)] = 0
    """Layers at the beginning that keep weights of their own."""
    end: Annotated[int, Field(ge=0)] = 0
    """Layers at the end that keep weights of their own."""
    order: Literal["cycle", "sequence"] = "cycle"
    """How the block repeats: whole after whole (a b a b, the paper), or layer by layer (a a b b)."""
    initialisation: Literal["average", "stepwise", "lower"] = "average"
    """What a shared weight starts as: the mean over the layers that share it, one of evenly spaced layers (better at
    rank 0), or the first of those that share it."""
    rank: Annotated[int, Field(ge=0)] = 64
    """Rank of the difference that each layer keeps of its own at every linear; 0: none, the plain recursive model."""
    adapter: Literal["svd", "zero"] = "svd"
    """What that difference starts as: the best approximation of what sharing took away, or nothing."""
    norms: Literal["per_depth", "shared"] = "per_depth"
    """Whether each layer keeps norms and biases of its own."""
    exit_weight: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the loss after each loop but the last, whose logits are its teacher; the paper takes 0.1. 0: none."""

    @model_validator(mode="after")
    def _whole_exits(self) -> RecursiveParameters:
        if self.exit_weight and self.zero_stage == 3:
            raise ValueError("exits read weights that zero_stage 3 shares out; set zero_stage to 2 or less")
        return self

    def smoke(self) -> Self:
        """A few steps, and as many loops as two layers have."""
        looped = {"loops": 2, "begin": 0, "end": 0, "rank": min(self.rank, 4)}
        return super().smoke().replaced(**looped)

    @property
    def needs_whole_weights(self) -> bool:
        """Whether weights are read outside of the forward pass, as exits do, and generating."""
        return bool(self.exit_weight) or super().needs_whole_weights


class DistillRecursive(DistillLogits):
    """Loop a block of layers with one set of weights, relaxed by low-rank differences, and distil the teacher into it.

    Relaxed Recursive Transformers. The report tells the distance to the teacher right after the conversion
    (`initial_…`) and after training, and with `exit_weight` how often each loop agrees with the last. The result loads
    with plain `transformers` after `import grafts`.
    """

    Params = RecursiveParameters
    inputs: ClassVar[Mapping[str, Input]] = {
        "teacher": Input(Model),
        "data": Input(Dataset, schema="tokens"),
        "heldout": Input(Dataset, schema="tokens", optional=True),
        "cache": Input(Dataset, schema="tokens", optional=True),
    }
    metrics = ("parameters", "parameters_ratio", "initial_*", "exit_*", *TRAINED)
    paper = "2410.20672"
    params: RecursiveParameters

    def check(self, inputs: Mapping[str, Any]) -> None:
        """A standard teacher whose layers divide into the loops, and what all distillation asks for."""
        teacher: Model = inputs["teacher"]
        check_plain("teacher", teacher, "its layers cannot share weights", fix="loop first, then convert further")
        check_supported(teacher, "layers", fix="take a teacher of one of these")
        _check_loops(self.params, text_config(teacher.config))
        super().check({**inputs, "student": teacher})

    def run(self, context: Context) -> None:
        """Convert, measure, train, save, measure and report."""
        from stages.distill.looping import RecursiveDistillation, convert
        from stages.training.launch import run_training

        converted = convert(self.params, context)
        recipe = RecursiveDistillation.of(self.params, context)
        recipe.student = Model(converted.path)
        result = run_training(recipe, self.params, context)
        figures = {**converted.figures, **result.figures}
        context.metrics(**figures, **result.cost)
        details = {"graft": converted.graft, **result.details(self.params, context.seed)}
        write_report(context.output("report"), "Recursive distillation", figures, details)


def _check_loops(params: RecursiveParameters, config: Mapping[str, Any]) -> None:
    from grafts.recursive.core import Core

    try:
        core = Core(config["num_hidden_layers"], params.loops, params.begin, params.end, params.order)
        core.require_one_kind(config)
    except ValueError as error:
        raise UserError(str(error), fix="change `loops`, `begin` or `end`") from None
