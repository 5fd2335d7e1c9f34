"""Round-to-nearest weight quantisation: integer codes with one scale for each group of input features.

Symmetric codes follow w = scale * q, asymmetric ones w = scale * (q - zero_point), with q a signed integer of 4 or 8
bits. The scale is rounded to the weight's own dtype before the codes are chosen, so they fit what is stored. Codes are
packed into int32 words in the layout of the `pack-quantized` format of compressed-tensors.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

Bits = Literal[4, 8]


class Quantised(NamedTuple):
    """A weight [O, I] in G groups a row."""

    codes: Tensor
    """int8 [O, I]"""
    scale: Tensor
    """[O, G] in the weight's dtype"""
    zero_point: Tensor | None
    """int8 [O, G], or None for symmetric codes"""


def quantise(weight_OI: Tensor, bits: Bits, group_size: int, *, symmetric: bool = True) -> Quantised:
    """Nearest codes for `weight_OI`, which must be finite and whose I must be a multiple of `group_size`.

    Symmetric: 2**bits - 1 steps span -max|w| to max|w|. Asymmetric: they span the range of w, widened to hold 0. A
    weight moves by half its scale at most (asymmetric: one scale), apart from the rounding of the scale itself.
    """
    groups_OGS = weight_OI.float().unflatten(-1, (-1, group_size))
    lowest, highest = code_range(bits)
    low_OG, high_OG = groups_OGS.amin(-1).clamp(max=0), groups_OGS.amax(-1).clamp(min=0)
    span_OG = 2 * torch.maximum(-low_OG, high_OG) if symmetric else high_OG - low_OG
    # A group of zeros, or one that underflows the dtype, still needs a scale to divide by.
    scale_OG = (span_OG / (highest - lowest)).to(weight_OI.dtype).clamp(min=torch.finfo(weight_OI.dtype).tiny)
    wide_OG = scale_OG.float()
    zero_OG = torch.zeros_like(wide_OG) if symmetric else (lowest - low_OG / wide_OG).round().clamp(lowest, highest)
    codes_OGS = ((groups_OGS / wide_OG[..., None]).round() + zero_OG[..., None]).clamp(lowest, highest)
    return Quantised(codes_OGS.flatten(-2).to(torch.int8), scale_OG, None if symmetric else zero_OG.to(torch.int8))


def dequantise(quantised: Quantised) -> Tensor:
    """The weight [O, I] that the codes stand for, in the scale's dtype, bit for bit as compressed-tensors has it."""
    codes_OI, scale_OG, zero_point_OG = quantised
    steps_OGS = codes_OI.to(scale_OG.dtype).unflatten(-1, (scale_OG.shape[-1], -1))
    if zero_point_OG is not None:
        steps_OGS = steps_OGS - zero_point_OG.to(scale_OG.dtype)[..., None]
    return (steps_OGS * scale_OG[..., None]).flatten(-2)


def naive_quantise(weight_OI: Tensor, bits: Bits, group_size: int, *, symmetric: bool = True) -> Quantised:
    """Reference for `quantise`, one weight at a time."""
    lowest, highest = code_range(bits)
    num_rows, num_groups = weight_OI.shape[0], weight_OI.shape[1] // group_size
    codes_OI = torch.zeros(weight_OI.shape, dtype=torch.int8)
    scale_OG = torch.zeros(num_rows, num_groups, dtype=weight_OI.dtype)
    zero_OG = torch.zeros(num_rows, num_groups, dtype=torch.int8)
    for row in range(num_rows):
        for group in range(num_groups):
            columns = range(group * group_size, (group + 1) * group_size)
            values = [weight_OI[row, column].float() for column in columns]
            low, high = min([torch.tensor(0.0), *values]), max([torch.tensor(0.0), *values])
            span = 2 * max(-low, high) if symmetric else high - low
            scale = (span / (highest - lowest)).to(weight_OI.dtype).clamp(min=torch.finfo(weight_OI.dtype).tiny)
            zero = 0 if symmetric else round((lowest - low / scale.float()).item())
            zero = min(max(zero, lowest), highest)
            for column, value in zip(columns, values, strict=True):
                code = round((value / scale.float()).item()) + zero
                codes_OI[row, column] = min(max(code, lowest), highest)
            scale_OG[row, group], zero_OG[row, group] = scale, zero
    return Quantised(codes_OI, scale_OG, None if symmetric else zero_OG)


def pack(codes_RC: Tensor, bits: Bits) -> Tensor:
    """Codes [R, C] as int32 words [R, ceil(C * bits / 32)]: offset to unsigned, first code in the lowest bits."""
    per_word = 32 // bits
    unsigned = codes_RC.long() - code_range(bits)[0]
    words_RWP = torch.nn.functional.pad(unsigned, (0, -codes_RC.shape[-1] % per_word)).unflatten(-1, (-1, per_word))
    shifts_P = torch.arange(per_word, device=codes_RC.device) * bits
    return (words_RWP << shifts_P).sum(-1).to(torch.int32)


def unpack(words_RW: Tensor, bits: Bits, num_columns: int) -> Tensor:
    """Inverse of `pack`: int8 codes [R, num_columns]."""
    shifts_P = torch.arange(32 // bits, device=words_RW.device) * bits
    unsigned = (words_RW.long()[..., None] >> shifts_P) & (2**bits - 1)
    return (unsigned.flatten(-2)[..., :num_columns] + code_range(bits)[0]).to(torch.int8)


def packed_tensors(quantised: Quantised, bits: Bits) -> dict[str, Tensor]:
    """What a `pack-quantized` checkpoint stores in place of a linear's `weight`, by the name after the layer's."""
    codes_OI, scale_OG, zero_point_OG = quantised
    tensors = {
        "weight_packed": pack(codes_OI, bits),
        "weight_scale": scale_OG,
        "weight_shape": torch.tensor(codes_OI.shape),
    }
    if zero_point_OG is not None:
        tensors["weight_zero_point"] = pack(zero_point_OG.T, bits).T.contiguous()
    return tensors


def code_range(bits: Bits) -> tuple[int, int]:
    """Lowest and highest code of `bits` bits."""
    return -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
