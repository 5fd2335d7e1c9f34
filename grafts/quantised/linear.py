"""A linear whose weight is stored as integer codes and made dense whenever it is used."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from grafts.packing import WORD_BITS, packed_tensors, unpack
from grafts.rtn import Bits, Quantised, dequantise

PARTS = ("weight_packed", "weight_scale", "weight_zero_point")
"""What stands in a checkpoint in place of a linear's `weight`, named and laid out as compressed-tensors has it."""


class _Dense(NamedTuple):
    weight: Tensor
    made_of: tuple[Tensor, ...]
    versions: tuple[int, ...]

    def is_of(self, parts: tuple[Tensor, ...], versions: tuple[int, ...]) -> bool:
        """Whether these very tensors, unchanged, are what the weight was made of."""
        return self.versions == versions and all(a is b for a, b in zip(self.made_of, parts, strict=True))


class QuantisedLinear(nn.Module):
    """Takes the place of an `nn.Linear` [O, I]: codes, scales and zero points as buffers, its bias as it was.

    Buffers, for G = ceil(I / group_size) groups a row: `weight_packed` int32 [O, ceil(I * bits / 32)], `weight_scale`
    [O, G] in the weight's type and, unless symmetric, `weight_zero_point` int32 [ceil(O * bits / 32), G]. Until `fill`
    or a checkpoint says otherwise the weight is zero. `correction` adds to the output what it makes of the input.
    """

    def __init__(self, linear: nn.Linear, bits: Bits, group_size: int, *, symmetric: bool) -> None:
        super().__init__()
        self.out_features, self.in_features = linear.weight.shape
        self.bits, self.group_size, self.symmetric = bits, group_size, symmetric
        for part, tensor in self._empty(linear.weight).items():
            self.register_buffer(part, tensor)
        self.bias = linear.bias
        self.correction: nn.Module | None = None
        self.hold = False
        self._dense: _Dense | None = None

    @property
    def weight(self) -> Tensor:
        """The weight [O, I] that the codes stand for, in the scale's type; made anew, unless `hold` is set."""
        if not self.hold or torch.compiler.is_compiling():
            return dequantise(self.quantised)
        parts = tuple(self._parts().values())
        versions = tuple(0 if part.is_inference() else part._version for part in parts)
        made = self._dense
        if made is None or made.weight.dtype != self.weight_scale.dtype or not made.is_of(parts, versions):
            with torch.inference_mode(False):  # a tensor made in that mode could not take part in training later
                made = self._dense = _Dense(dequantise(self.quantised), parts, versions)
        return made.weight

    @property
    def quantised(self) -> Quantised:
        """Codes, scales and zero points, unpacked."""
        codes_OI = unpack(self.weight_packed, self.bits, self.in_features)
        if self.symmetric:
            return Quantised(codes_OI, self.weight_scale, None, self.group_size)
        zeros_OG = unpack(self.weight_zero_point.T, self.bits, self.out_features).T
        return Quantised(codes_OI, self.weight_scale, zeros_OG, self.group_size)

    def fill(self, quantised: Quantised) -> None:
        """Store these codes, which must be of this linear's shape, bits and groups."""
        packed = packed_tensors(quantised, self.bits)
        for part, tensor in self._parts().items():
            tensor.copy_(packed[part])

    def forward(self, x: Tensor) -> Tensor:
        """[..., I] to [..., O]."""
        y = functional.linear(x, self.weight, self.bias)
        return y if self.correction is None else y + self.correction(x)

    def extra_repr(self) -> str:
        """Shape and grid."""
        grid = f"bits={self.bits}, group_size={self.group_size}, symmetric={self.symmetric}"
        return f"in_features={self.in_features}, out_features={self.out_features}, {grid}"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_dense": None}

    def _parts(self) -> dict[str, Tensor]:
        return {part: self.get_buffer(part) for part in (PARTS[:2] if self.symmetric else PARTS)}

    def _empty(self, weight: Tensor) -> dict[str, Tensor]:
        num_groups = -(-self.in_features // self.group_size)
        words_I, words_O = (-(-width * self.bits // WORD_BITS) for width in (self.in_features, self.out_features))
        integers = {"dtype": torch.int32, "device": weight.device}
        parts = {
            "weight_packed": torch.zeros(self.out_features, words_I, **integers),
            "weight_scale": torch.zeros(self.out_features, num_groups, dtype=weight.dtype, device=weight.device),
        }
        return parts if self.symmetric else {**parts, "weight_zero_point": torch.zeros(words_O, num_groups, **integers)}


def hold_weights(model: nn.Module, hold: bool = True) -> None:
    """Let every quantised linear of `model` keep its dense weight from its first use on: faster, in more memory.

    Nothing that is computed or saved changes. A dense weight is made again when its codes change.
    """
    for module in model.modules():
        if isinstance(module, QuantisedLinear):
            module.hold, module._dense = hold, None
