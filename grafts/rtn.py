"""Round-to-nearest weight quantisation: integer codes with one scale for each group of input features.

Symmetric codes follow w = scale * q, asymmetric ones w = scale * (q - zero_point), with q a signed integer of 2, 3, 4
or 8 bits. The scale is rounded to the weight's own dtype before the codes are chosen, so they fit what is stored. The
grid of a group and the rounding onto it are functions of their own: every other quantiser here is built from them.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

Bits = Literal[2, 3, 4, 8]


class Grid(NamedTuple):
    """The values that the G groups of each of O rows may take."""

    scale: Tensor
    """[O, G] in the dtype that is stored"""
    zero_point: Tensor | None
    """int8 [O, G], or None for symmetric codes"""


class Quantised(NamedTuple):
    """A weight [O, I] in G = ceil(I / group_size) groups a row; the last one may be shorter."""

    codes: Tensor
    """int8 [O, I]"""
    scale: Tensor
    """[O, G] in the weight's dtype"""
    zero_point: Tensor | None
    """int8 [O, G], or None for symmetric codes"""
    group_size: int
    """Input features of a group"""


def quantise(weight_OI: Tensor, bits: Bits, group_size: int, *, symmetric: bool = True) -> Quantised:
    """Nearest codes for `weight_OI`, which must be finite.

    Symmetric: 2**bits - 1 steps span -max|w| to max|w|. Asymmetric: they span the range of w, widened to hold 0. A
    weight moves by half its scale at most (asymmetric: one scale), apart from the rounding of the scale itself.
    """
    grid = find_grid(weight_OI, bits, group_size, weight_OI.dtype, symmetric=symmetric)
    codes_OGS = nearest_codes(_groups(weight_OI.float(), group_size), Grid(*_last_dim(grid)), bits)
    codes_OI = codes_OGS.flatten(-2)[:, : weight_OI.shape[-1]].contiguous()
    return Quantised(codes_OI, grid.scale, grid.zero_point, group_size)


def find_grid(weight_OI: Tensor, bits: Bits, group_size: int, dtype: torch.dtype, *, symmetric: bool) -> Grid:
    """The grid of each group of `weight_OI`, with scales in `dtype`."""
    groups_OGS = _groups(weight_OI.float(), group_size)  # padding with zeros changes no range: it holds 0 anyway
    lowest, highest = code_range(bits)
    low_OG, high_OG = groups_OGS.amin(-1).clamp(max=0), groups_OGS.amax(-1).clamp(min=0)
    span_OG = 2 * torch.maximum(-low_OG, high_OG) if symmetric else high_OG - low_OG
    # A group of zeros, or one that underflows the dtype, still needs a scale to divide by.
    scale_OG = (span_OG / (highest - lowest)).to(dtype).clamp(min=torch.finfo(dtype).tiny)
    if symmetric:
        return Grid(scale_OG, None)
    return Grid(scale_OG, (lowest - low_OG / scale_OG.float()).round().clamp(lowest, highest).to(torch.int8))


def nearest_codes(values: Tensor, grid: Grid, bits: Bits) -> Tensor:
    """The int8 codes nearest to `values`, on a grid that broadcasts against them."""
    zero = 0 if grid.zero_point is None else grid.zero_point.float()
    return ((values.float() / grid.scale.float()).round() + zero).clamp(*code_range(bits)).to(torch.int8)


def grid_values(codes: Tensor, grid: Grid) -> Tensor:
    """What `codes` stand for on a grid that broadcasts against them, bit for bit as compressed-tensors has it."""
    steps = codes.to(grid.scale.dtype)
    if grid.zero_point is not None:
        steps = steps - grid.zero_point.to(grid.scale.dtype)
    return steps * grid.scale


def dequantise(quantised: Quantised) -> Tensor:
    """The weight [O, I] that the codes stand for, in the scale's dtype."""
    grid = Grid(*_last_dim(Grid(quantised.scale, quantised.zero_point)))
    values_OGS = grid_values(_groups(quantised.codes, quantised.group_size), grid)
    return values_OGS.flatten(-2)[:, : quantised.codes.shape[-1]].contiguous()


def naive_quantise(weight_OI: Tensor, bits: Bits, group_size: int, *, symmetric: bool = True) -> Quantised:
    """Reference for `quantise`, one weight at a time."""
    lowest, highest = code_range(bits)
    num_rows, num_columns = weight_OI.shape
    num_groups = -(-num_columns // group_size)
    codes_OI = torch.zeros(weight_OI.shape, dtype=torch.int8)
    scale_OG = torch.zeros(num_rows, num_groups, dtype=weight_OI.dtype)
    zero_OG = torch.zeros(num_rows, num_groups, dtype=torch.int8)
    for row in range(num_rows):
        for group in range(num_groups):
            columns = range(group * group_size, min((group + 1) * group_size, num_columns))
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
    return Quantised(codes_OI, scale_OG, None if symmetric else zero_OG, group_size)


def code_range(bits: Bits) -> tuple[int, int]:
    """Lowest and highest code of `bits` bits."""
    return -(2 ** (bits - 1)), 2 ** (bits - 1) - 1


def _groups(matrix_OI: Tensor, group_size: int) -> Tensor:
    """[O, I] as [O, G, S], the last group filled up with zeros."""
    padded = functional.pad(matrix_OI, (0, -matrix_OI.shape[-1] % group_size))
    return padded.unflatten(-1, (-1, group_size))


def _last_dim(grid: Grid) -> tuple[Tensor, Tensor | None]:
    """[O, G] as [O, G, 1], to broadcast over the features of a group."""
    return grid.scale[..., None], None if grid.zero_point is None else grid.zero_point[..., None]
