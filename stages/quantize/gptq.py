"""`quantize.gptq`: integers for a model's linears, each rounding error made good by the weights not yet rounded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from stages.quantize.calibrated import CalibratedParams, CalibratedQuantize

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from stages.quantize.calibrate import Method


Order = Literal["natural", "activation"]
"""In which weights are rounded, as in `grafts.quantizers.gptq`."""


class GptqParams(CalibratedParams):
    """How weights are stored and rounded, on how much text they are calibrated and measured."""

    order: Order = "activation"
    """`activation`: weights of the strongest inputs are rounded first, on scales of the pretrained weights. `natural`:
    from left to right, each group's scale found when it is reached."""
    damping: Annotated[float, Field(gt=0, le=1)] = 0.01
    """Share of the mean variance that is added to each input's."""
    sequential: bool = True
    """Calibrate each layer on what the quantised layers before it give, at the cost of a second pass."""


class QuantizeGptq(CalibratedQuantize):
    """Quantise the weights of every linear by GPTQ: rounding errors are made good by the weights not yet rounded.

    What each linear gives for the calibration text is kept, rather than its weights (arXiv:2210.17323). Moments of the
    inputs are summed in one pass, a decoder layer at a time; linears that read one input share them. Stored like
    `quantize.rtn`, in the `pack-quantized` format of compressed-tensors, on grids of neighbouring input features.
    """

    Params = GptqParams
    title = "GPTQ quantisation"
    paper = "2210.17323"
    params: GptqParams

    def method(self, model: PreTrainedModel) -> Method:  # noqa: ARG002, GPTQ needs the layers alone
        """GPTQ on all linears that read one input at once."""
        from stages.quantize.solvers import Gptq

        return Gptq(self.params.scheme(), self.params.order, self.params.damping)
