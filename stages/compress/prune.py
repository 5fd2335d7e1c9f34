"""`compress.prune`: weights set to zero by magnitude or by Wanda, anywhere or n of every m."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from stages.artifacts import Dataset, Model, Report, write_report
from stages.errors import UserError
from stages.evaluate.matching import require_given_tokens
from stages.evaluate.measured import DISTANCE
from stages.stage import EXECUTION, Context, Input, Output, Parameters, Stage
from stages.training.checks import check_plain, num_experts


class PruneParameters(Parameters):
    """Which weights go."""

    method: Literal["magnitude", "wanda"] = "wanda"
    """Score of a weight: its size, or its size times the norm of its input on the calibration text."""
    sparsity: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """Share of the weights of every linear that goes: of each row with `wanda`, of the whole matrix with `magnitude`.
    Unused with `pattern`."""
    pattern: tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=2)]] | None = None
    """(n, m): of every m neighbours in a row, the n with the highest scores stay; `[2, 4]` is what GPUs speed up."""
    calibration_windows: Annotated[int, Field(ge=1)] = 64
    """Windows of `data` on which the inputs of linears are measured; unused by `magnitude`."""
    heldout_windows: Annotated[int, Field(ge=1)] = 32
    """Windows of `heldout` on which the distance to the model is measured."""
    batch_size: Annotated[int, Field(ge=1), EXECUTION] = 4
    """Windows in a forward pass."""

    @model_validator(mode="after")
    def _keeps_some(self) -> PruneParameters:
        if self.pattern is not None and self.pattern[0] >= self.pattern[1]:
            raise ValueError(f"pattern: {list(self.pattern)} keeps all of every {self.pattern[1]}; n must be below m")
        return self

    def smoke(self) -> Self:
        """A few windows."""
        return self.replaced(calibration_windows=2, heldout_windows=2)


class CompressPrune(Stage):
    """Set weights of the linears between embedding and head to zero, and write down which.

    Nothing is trained: `compress.perp` brings back what it cost. The result is a model of the same class, as large on
    disk as before, with its masks beside it.
    """

    Params = PruneParameters
    inputs: ClassVar[Mapping[str, Input]] = {
        "model": Input(Model),
        "data": Input(Dataset, schema="tokens", optional=True),
        "heldout": Input(Dataset, schema="tokens", optional=True),
    }
    outputs: ClassVar[Mapping[str, Output]] = {"model": Output(Model), "report": Output(Report)}
    metrics = ("sparsity", "pruned_weights", *DISTANCE)
    paper = "2306.11695"
    params: PruneParameters

    def check(self, inputs: Mapping[str, Any]) -> None:
        """A standard model with weights, and text where inputs are measured."""
        model: Model = inputs["model"]
        check_plain("model", model, "its linears cannot be pruned one by one", fix="prune first")
        count = num_experts(model)
        if count:
            raise UserError(
                f"the model is a mixture: its {count} experts a layer are no linears and would stay whole",
                fix="prune the dense model, then upcycle",
            )
        if self.params.method == "wanda" and inputs.get("data") is None:
            raise UserError(
                "`wanda` measures the inputs of linears on text, and there is none",
                fix="give tokens as input `data`, or set `method: magnitude`",
            )
        require_given_tokens(model, inputs)

    def run(self, context: Context) -> None:
        """Score, prune, save with masks, measure and report."""
        from stages.compress.pruning import prune

        figures, by_linear = prune(self.params, context)
        context.metrics(**figures)
        details = {"parameters": self.params.identity(), "sparsity": by_linear}
        write_report(context.output("report"), "Pruning", figures, details)
