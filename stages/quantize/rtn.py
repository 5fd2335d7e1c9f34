"""`quantize.rtn`: store a model's linears as integers of 2 to 8 bits, by rounding to nearest."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from stages.quantize.stage import Quantize, QuantizeParams
from stages.stage import Context

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from stages.quantize.packed import Packed


class RoundToNearestParams(QuantizeParams):
    """How weights are stored, and on how much text the result is measured."""


class QuantizeRoundToNearest(Quantize):
    """Quantise the weights of every linear to 2, 3, 4 or 8 bits, by rounding to nearest, without data.

    Writes the `pack-quantized` format of compressed-tensors, which plain `transformers` and vLLM load; tied embeddings
    stay tied. With `heldout` text it reads the written model back and reports its distance to the parent. The affine
    scheme w = scale * (q - zero_point) is that of arXiv:1712.05877, with one scale a group of input features.
    """

    Params = RoundToNearestParams
    title = "Round-to-nearest quantisation"
    paper = "1712.05877"
    params: RoundToNearestParams

    def quantise(self, context: Context, model: PreTrainedModel) -> tuple[Packed, Mapping[str, Any]]:
        """Round every linear; nothing else changes."""
        from stages.quantize.packed import round_model

        return round_model(model, self.params.scheme(), self.params.skip, context.progress), {}
