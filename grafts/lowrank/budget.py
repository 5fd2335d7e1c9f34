"""What bytes buy: the rank of a correction, shared or separate; and the bytes that codes take.

File sizes alone decide here, so that a comparison can be made at equal bytes before anything is computed.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import NamedTuple

from grafts.packing import packed_bytes
from grafts.rtn import Bits


class Shape(NamedTuple):
    """What decides the size of a group's correction."""

    outputs: tuple[int, ...]
    """O_i of each module"""
    inputs: int


def correction_bytes(shapes: Sequence[Shape], rank: int, *, shared: bool, value_bytes: int = 2) -> int:
    """Bytes of the factors of rank `rank`, or of the largest rank that a group can have, for groups of `shapes`.

    `shared`: one right factor a group, else one a module. `value_bytes`: of a stored number.
    """
    units = list(shapes) if shared else [Shape((size,), shape.inputs) for shape in shapes for size in shape.outputs]
    return sum(
        value_bytes * min(rank, unit.inputs, sum(unit.outputs)) * (unit.inputs + sum(unit.outputs)) for unit in units
    )


def rank_of_bytes(shapes: Sequence[Shape], num_bytes: float, *, shared: bool, value_bytes: int = 2) -> int:
    """The largest rank, one for all groups, whose factors take at most `num_bytes`; 0 when rank 1 takes more."""
    largest = max((min(shape.inputs, sum(shape.outputs)) for shape in shapes), default=0)

    def size(rank: int) -> int:
        return correction_bytes(shapes, rank, shared=shared, value_bytes=value_bytes)

    return bisect_right(range(1, largest + 1), num_bytes, key=size)


class Grid(NamedTuple):
    """How codes are stored."""

    bits: Bits
    group_size: int


def codes_bytes(shapes: Sequence[Shape], grid: Grid, *, symmetric: bool, scale_bytes: int = 2) -> int:
    """Bytes of the codes, scales and zero points of all linears in groups of `shapes`."""
    return sum(
        packed_bytes(size, shape.inputs, grid.bits, grid.group_size, symmetric=symmetric, scale_bytes=scale_bytes)
        for shape in shapes
        for size in shape.outputs
    )
