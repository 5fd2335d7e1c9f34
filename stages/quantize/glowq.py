"""`quantize.glowq`: a base quantiser, and low-rank corrections that share one factor among all readers of an input."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from stages.errors import UserError
from stages.quantize.base import BaseParams, base_method
from stages.quantize.calibrated import CalibratedQuantize, calibration_details
from stages.stage import Context

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from grafts.lowrank.selection import Score
    from stages.quantize.calibrate import Calibrated, Method
    from stages.quantize.correction import Restored, Settings
    from stages.quantize.packed import Packed
    from stages.quantize.targets import Targets

Solver = Literal["glowq", "glowq_refit", "qera_exact", "qera_approx", "l2qer", "zeroquant_v2"]
DEFAULT_RANK = 64
"""The paper's."""
SMOKE_RATIO = 2.0
"""What corrections add at least to a generated model, whose layers are as narrow as a correction."""


class GlowqParams(BaseParams):
    """How weights are stored and corrected, on how much text they are calibrated and measured."""

    solver: Solver = "glowq"
    """`glowq`: linears that read one input share a right factor; `glowq_refit`: and each gets its best left factor for
    it, so that none becomes worse than uncorrected. The others, for comparison, give each linear factors of its own."""
    rank: Annotated[int | None, Field(ge=0)] = None
    """Of every correction; 64 when `added_bytes_ratio` is not given either. 0 corrects nothing."""
    added_bytes_ratio: Annotated[float | None, Field(gt=0)] = None
    """Instead of `rank`: bytes of the corrections over those of codes, scales and zero points. The largest rank that
    keeps to it is taken, so that solvers can be compared at equal bytes."""
    shrinkage: Annotated[float, Field(ge=0, lt=1)] = 0.05
    """Share of the mean variance in the covariance of the inputs, so that rare directions count a little."""
    decomposition: Literal["randomised", "exact"] = "randomised"
    """Of the whitened error; the randomised one is a function of the seed."""

    @model_validator(mode="after")
    def _one_size(self) -> Self:
        if self.rank is not None and self.added_bytes_ratio is not None:
            raise ValueError(f"rank: {self.rank} and added_bytes_ratio: {self.added_bytes_ratio}: give one of them")
        return self

    def smoke(self) -> Self:
        """Groups that fit narrow layers, a few windows, a small rank; room for it, where narrow layers need more."""
        smaller = super().smoke()
        if smaller.added_bytes_ratio is not None:
            return smaller.replaced(added_bytes_ratio=max(smaller.added_bytes_ratio, SMOKE_RATIO))
        return smaller.replaced(rank=min(DEFAULT_RANK if self.rank is None else self.rank, 4))


class QuantizeGlowq(CalibratedQuantize):
    """Quantise by round-to-nearest, GPTQ or AWQ, and give back what was lost with group-shared low-rank corrections.

    y_i = W'_i x + A_i (B x): the linears that read one input x share B (GlowQ, arXiv:2603.25385), so a decoder layer
    computes four small products instead of seven. Found in one pass over calibration text, a layer at a time. Per-layer
    corrections of the literature are solvers of the same stage. Loads with plain `transformers` after `import grafts`.
    """

    Params = GlowqParams
    title = "GlowQ quantisation"
    always_grafted = True
    metrics = (
        *CalibratedQuantize.metrics,
        "output_error_uncorrected",
        "rank",
        "added_bytes",
        "added_bytes_ratio",
        "error_captured",
    )
    paper = "2603.25385"
    params: GlowqParams

    def method(self, model: PreTrainedModel) -> Method:
        """The base quantiser."""
        return base_method(self.params, model, self.params.scheme())

    def quantise(self, context: Context, model: PreTrainedModel) -> tuple[Packed, Mapping[str, Any]]:
        """Calibrate, quantise and correct one layer after another."""
        from stages.quantize.correction import Corrected
        from stages.quantize.targets import targets

        chosen, windows_NT = targets(model, self.params.group_size, self.params.skip), self.windows(context)
        method = Corrected(self.method(model), self._settings(context, model, chosen, windows_NT))
        found = self.calibrate(context, model, method, chosen, windows_NT)
        kept, details = self.select(context, method.restored)
        found.packed.corrections = list(kept)
        self._measure(context, found)
        context.metrics(rank=method.settings.rank)
        return found.packed, {
            **method.details(),
            **calibration_details(found),
            **details,
            "output_errors_uncorrected": found.uncorrected_errors,
            "corrections": [_described(each) for each in kept],
        }

    def select(self, context: Context, restored: Sequence[Restored]) -> tuple[Sequence[Restored], Mapping[str, Any]]:  # noqa: ARG002
        """Which corrections are kept, and what the report tells of the choice: here all of them."""
        return restored, {}

    def score(self) -> Score:
        """By what groups are ranked."""
        return "energy_capture"

    def _settings(
        self, context: Context, model: PreTrainedModel, chosen: Targets, windows_NT: torch.Tensor
    ) -> Settings:
        from stages.quantize.correction import Settings

        return Settings(
            solver=self.params.solver,
            rank=self._rank(model, chosen, windows_NT),
            shrinkage=self.params.shrinkage,
            randomised=self.params.decomposition == "randomised",
            score=self.score(),
            seed=context.seed,
            dtype=model.dtype,
        )

    def _rank(self, model: PreTrainedModel, chosen: Targets, windows_NT: torch.Tensor) -> int:
        from grafts.lowrank.budget import Grid, codes_bytes, correction_bytes, rank_of_bytes
        from stages.quantize.correction import SEPARATE, group_shapes

        ratio = self.params.added_bytes_ratio
        if ratio is None:
            return DEFAULT_RANK if self.params.rank is None else self.params.rank
        shapes, value_bytes = group_shapes(model, windows_NT[0, :64], chosen), model.dtype.itemsize
        grid, symmetric = Grid(self.params.bits, self.params.group_size), self.params.symmetric
        codes = codes_bytes(shapes, grid, symmetric=symmetric, scale_bytes=value_bytes)
        shared = self.params.solver not in SEPARATE
        rank = rank_of_bytes(shapes, ratio * codes, shared=shared, value_bytes=value_bytes)
        if rank == 0:
            least = correction_bytes(shapes, 1, shared=shared, value_bytes=value_bytes) / codes
            raise UserError(
                f"added_bytes_ratio {ratio} is too small for a correction of rank 1, which adds {least:.4f}",
                fix=f"set added_bytes_ratio to {least:.4f} or more, or rank: 0 for no correction",
            )
        return rank

    def _measure(self, context: Context, found: Calibrated) -> None:
        packed = found.packed
        corrected = {name for each in packed.corrections for name in each.members}
        errors = [
            error if name in corrected else found.uncorrected_errors[name]
            for name, error in found.output_errors.items()
        ]
        added = sum(each.num_bytes for each in packed.corrections)
        context.metrics(
            output_error=fmean(errors),
            output_error_uncorrected=fmean(found.uncorrected_errors.values()),
            added_bytes=added,
            added_bytes_ratio=added / packed.code_bytes(),
            error_captured=fmean([each.captured for each in packed.corrections] or [0.0]),
        )


def _described(restored: Restored) -> dict[str, Any]:
    return {
        "members": list(restored.members),
        "rank": restored.rank,
        "captured": restored.captured,
        "bytes": restored.num_bytes,
    }
