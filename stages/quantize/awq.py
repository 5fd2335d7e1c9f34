"""`quantize.awq`: round to nearest, after making the weights of strong inputs larger and those inputs weaker."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from stages.quantize.calibrated import CalibratedParams, CalibratedQuantize
from stages.stage import Context

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from stages.quantize.calibrate import Method
    from stages.quantize.packed import Packed


class AwqParams(CalibratedParams):
    """How weights are stored and scaled, on how much text they are calibrated and measured."""

    exponents: Annotated[int, Field(ge=1, le=100)] = 20
    """How many exponents 0, 1/n, … (n-1)/n of the inputs' magnitudes are tried; 1 is round-to-nearest."""


class QuantizeAwq(CalibratedQuantize):
    """Quantise the weights of every linear by AWQ: scaled by how strong each input is, then rounded to nearest.

    The inverse scales go into the norm or linear before (arXiv:2306.00978), which is found by trying: it is one whose
    change leaves what the layer computes as it was. Where there is none, weights are rounded as they are, and the
    report says so. Stored like `quantize.rtn`; the model keeps its structure and needs no code to load.
    """

    Params = AwqParams
    title = "AWQ quantisation"
    metrics = (*CalibratedQuantize.metrics, "scaled_share")
    paper = "2306.00978"
    params: AwqParams

    def method(self, model: PreTrainedModel) -> Method:
        """AWQ on all linears that read one input at once."""
        from stages.quantize.solvers import Awq

        return Awq(model, self.params.scheme(), self.params.exponents)

    def quantise(self, context: Context, model: PreTrainedModel) -> tuple[Packed, Mapping[str, Any]]:
        """Calibrate, scale and quantise one layer after another, and tell where nothing could be scaled."""
        packed, details = super().quantise(context, model)
        scaling = details["scaling"]
        unscaled = [name for name, found in scaling.items() if found["source"] is None]
        context.metrics(scaled_share=1 - len(unscaled) / len(scaling))
        if unscaled:
            kinds = sorted({name.rpartition(".")[2] for name in unscaled})
            context.say(f"{len(unscaled)} of {len(scaling)} inputs have nothing before them to scale: {kinds}")
        return packed, details
