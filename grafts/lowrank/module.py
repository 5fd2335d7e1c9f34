"""The correction of quantised linears inside a model: R = B x once for all that read x, then A_i R for each.

`R` is handed from whichever reader runs first to the others. It counts for the very same tensor object alone: same
version, same B, same mode of autograd, and for each reader once. So nothing is reused across batches, steps of
generation, recomputed checkpoints or changed weights, in whatever order the readers run. `torch.compile` sees the
hand-over as part of the graph when it compiles for inference. For training, and in `torch.export`, every reader asks
for the product: there the compiler merges equal ones, and recomputed parts may not hand anything over.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional


class _Handed(NamedTuple):
    x: weakref.ref[Tensor]
    right: Tensor
    state: tuple[int, int, bool]
    product: Tensor
    readers: frozenset[int]


class Projection(nn.Module):
    """The factor B [R, I] of a group of `num_readers` linears, zero until it is filled."""

    def __init__(self, rank: int, in_features: int, num_readers: int, **where: Any) -> None:
        super().__init__()
        self.right = nn.Parameter(torch.zeros(rank, in_features, **where))
        self.num_readers = num_readers
        self._handed: _Handed | None = None
        self._traced: tuple[Tensor, Tensor, frozenset[int]] | None = None

    def forward(self, x: Tensor, reader: int) -> Tensor:
        """B x, [..., I] to [..., R], for the reader of that number in the group."""
        if self.num_readers == 1:
            return self.product(x)
        if torch.compiler.is_compiling():
            traced = torch.compiler.is_dynamo_compiling() and not torch.is_grad_enabled()
            return self._in_graph(x, reader) if traced else self.product(x)
        handed = self._handed  # read once: another thread may put its own there
        state = (_version(x), _version(self.right), torch.is_grad_enabled())
        if handed is None or not self._is_of(handed, x, state) or reader in handed.readers:
            handed = _Handed(weakref.ref(x), self.right, state, self.product(x), frozenset())
        readers = handed.readers | {reader}
        self._handed = None if len(readers) == self.num_readers else handed._replace(readers=readers)
        return handed.product

    def product(self, x: Tensor) -> Tensor:
        """B x, always computed."""
        return functional.linear(x, self.right)

    def _in_graph(self, x: Tensor, reader: int) -> Tensor:
        """The same for a tracer, which follows neither weak references nor versions but knows a tensor from another."""
        traced = self._traced
        if traced is None or traced[0] is not x or reader in traced[2]:
            traced = (x, self.product(x), frozenset())
        readers = traced[2] | {reader}
        self._traced = None if len(readers) == self.num_readers else (x, traced[1], readers)
        return traced[1]

    def _is_of(self, handed: _Handed, x: Tensor, state: tuple[int, int, bool]) -> bool:
        return handed.x() is x and handed.right is self.right and handed.state == state

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_handed": None, "_traced": None}


class Correction(nn.Module):
    """A_i (B x) for one linear of a group; the group's first one holds B, in `projection`."""

    def __init__(self, out_features: int, projection: Projection, reader: int) -> None:
        super().__init__()
        right = projection.right
        self.left = nn.Parameter(torch.zeros(out_features, len(right), device=right.device, dtype=right.dtype))
        self.reader = reader
        self.projection = projection if reader == 0 else None
        self._group = (projection,)  # in a tuple, so that it is no submodule of each reader

    def forward(self, x: Tensor) -> Tensor:
        """[..., I] to [..., O]."""
        return functional.linear(self._group[0](x, self.reader), self.left)

    @property
    def right(self) -> Tensor:
        """B [R, I], that of the group."""
        return self._group[0].right


def corrections(readers: Sequence[int], rank: int, in_features: int, **where: Any) -> list[Correction]:
    """Corrections of zero for a group of linears with `readers` outputs each, which share B."""
    projection = Projection(rank, in_features, len(readers), **where)
    return [Correction(out_features, projection, index) for index, out_features in enumerate(readers)]


def _version(tensor: Tensor) -> int:
    # A tensor of inference mode counts no changes; then its readers are trusted to find it as the first one did.
    return 0 if tensor.is_inference() else tensor._version
