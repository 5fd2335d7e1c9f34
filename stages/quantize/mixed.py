"""`quantize.mixed`: more bits for the linears that gain most by them, within a budget of bytes."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, model_validator

from stages.quantize.base import BaseParams, base_method
from stages.quantize.calibrated import CalibratedQuantize, calibration_details
from stages.stage import Context

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from stages.quantize.calibrate import Calibrated, Method
    from stages.quantize.packed import Packed
    from stages.quantize.upgrade import Upgradable


class MixedParams(BaseParams):
    """How weights are stored and given more bits, on how much text they are calibrated and measured."""

    added_bytes_ratio: Annotated[float, Field(ge=0)] = 0.1
    """Bytes that more bits may add, at most, over those of all codes, scales and zero points in `bits`."""

    @model_validator(mode="after")
    def _more_exist(self) -> MixedParams:
        if self.bits == 8:
            raise ValueError("bits: 8 is the most there is; give 2, 3 or 4")
        return self


class QuantizeMixed(CalibratedQuantize):
    """Quantise, and store in the next higher number of bits those linears whose outputs gain most a byte.

    What corrections by low-rank factors have to be compared with at equal bytes: 2 becomes 3 bits, 3 becomes 4, 4
    becomes 8. A larger budget upgrades all that a smaller one does. Loads with plain `transformers` after
    `import grafts`.
    """

    Params = MixedParams
    title = "Mixed-bit quantisation"
    always_grafted = True
    metrics = (
        *CalibratedQuantize.metrics,
        "output_error_uncorrected",
        "added_bytes",
        "added_bytes_ratio",
        "upgraded_share",
    )
    params: MixedParams

    def method(self, model: PreTrainedModel) -> Method:
        """The base quantiser."""
        return base_method(self.params, model, self.params.scheme())

    def quantise(self, context: Context, model: PreTrainedModel) -> tuple[Packed, Mapping[str, Any]]:
        """Calibrate and quantise in both numbers of bits, then choose."""
        from stages.quantize.targets import targets
        from stages.quantize.upgrade import Upgradable, higher

        scheme = higher(self.params.scheme())
        upper = base_method(self.params, model, scheme) if self.params.base == "gptq" else None
        method = Upgradable(self.method(model), scheme, upper)
        chosen, windows_NT = targets(model, self.params.group_size, self.params.skip), self.windows(context)
        found = self.calibrate(context, model, method, chosen, windows_NT)
        codes = found.packed.code_bytes()
        upgraded = method.choose(self.params.added_bytes_ratio * codes)
        for name in upgraded:
            found.packed.upgrade(name, method.upgrades[name].solved, scheme.bits)
        self._measure(context, found, method, upgraded, codes)
        details = {"upgraded": upgraded, "output_errors_uncorrected": found.uncorrected_errors}
        return found.packed, {**method.details(), **calibration_details(found), **details}

    def _measure(
        self, context: Context, found: Calibrated, method: Upgradable, upgraded: list[str], codes: int
    ) -> None:
        after = {**found.uncorrected_errors, **{name: method.upgrades[name].error for name in upgraded}}
        added = found.packed.code_bytes() - codes
        context.metrics(
            output_error=fmean(after.values()),
            output_error_uncorrected=fmean(found.uncorrected_errors.values()),
            added_bytes=added,
            added_bytes_ratio=added / codes,
            upgraded_share=len(upgraded) / len(after),
        )
