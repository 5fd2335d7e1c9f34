"""Each tensor of a mixture by name, made of those of its sources: block after block, so that none need be whole.

Two readers feed it: models in memory (`Experts.convert`) and safetensors on disk (`grafts.experts.stream`). Both give
the same bits.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

import torch
from torch import Tensor

from grafts.experts.making import (
    dropped_units,
    generator,
    mean,
    random_router,
    renewed,
    share_of_units,
    with_noise,
)

if TYPE_CHECKING:
    from grafts.experts.graft import Experts

BLOCK_ELEMENTS: Final = 2**22
"""Elements that are in memory at once of a tensor made of all sources: 16 MB in float32."""
EXPERT: Final = re.compile(r"^(model\.layers\.\d+)\.mlp\.experts\.(\d+)\.(gate|up|down)_proj\.(weight|bias)$")
ROUTER: Final = re.compile(r"^model\.layers\.\d+\.(mlp|self_attn)\.router\.weight$")
ATTENTION: Final = re.compile(r"^(model\.layers\.\d+\.self_attn)\.((q|k|v|o)_proj\.(weight|bias)|o_bias)$")


class Reader(Protocol):
    """Gives the tensors of the sources, by the names they have in the dense model."""

    def read(self, source: int, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        """The rows `start` to `stop` of a tensor; all of them by default."""


@dataclass(frozen=True)
class InMemory:
    """Tensors of state dicts."""

    states: Sequence[Mapping[str, Tensor]]

    def read(self, source: int, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        """As `Reader.read`."""
        tensor = self.states[source][name]
        return tensor if tensor.ndim == 0 else tensor[start:stop]


@dataclass(frozen=True)
class Maker:
    """Makes the tensors of `graft` from those of `num_sources` models, the seed first."""

    graft: Experts
    num_sources: int
    reader: Reader

    @property
    def givers(self) -> list[int]:
        """The sources that give experts."""
        alone = self.num_sources == 1 or self.graft.making.first_is_expert
        return list(range(0 if alone else 1, self.num_sources))

    def giver(self, expert: int) -> int:
        """The source of a whole expert: they take turns."""
        return self.givers[expert % len(self.givers)]

    def make(self, name: str, shape: Sequence[int]) -> Iterator[Tensor]:
        """The tensor `name` of the mixture, which has `shape`, as blocks of rows from the first on."""
        if ROUTER.match(name):
            yield self._router(name, shape)
        elif expert := EXPERT.match(name):
            yield self._expert(expert[1], int(expert[2]), expert[3], expert[4])
        elif self.graft.attention and (attention := ATTENTION.match(name)):
            yield from self._attention(attention[1], attention[2], shape)
        else:
            yield from self._mean(name, shape, self.givers if self.graft.making.others == "mean" else [0])

    def _router(self, name: str, shape: Sequence[int]) -> Tensor:
        making, num_experts = self.graft.making, self.graft.num_experts
        split = shape[0] // num_experts
        return random_router(num_experts, split, shape[1], making.router_std, generator(making.seed, name))

    def _expert(self, layer: str, number: int, projection: str, kind: str) -> Tensor:
        making, split = self.graft.making, self.graft.split
        expert, share = divmod(number, split)
        tensor = self.reader.read(self.giver(expert), f"{layer}.mlp.{projection}_proj.{kind}")
        if kind == "bias":
            return tensor if projection == "down" else share_of_units(tensor, share, split, dim=0)
        dim = 1 if projection == "down" else 0
        units = dropped_units(tensor.shape[dim], making.drop, generator(making.seed, layer, expert, "units"))
        draw = generator(making.seed, layer, expert, projection)
        made = with_noise(renewed(tensor, units, dim, draw), making.noise, draw)
        part = share_of_units(made, share, split, dim)
        # The gates of an expert's shares sum to its gate: without the factor each would count a `split`-th.
        return part * split if projection == "down" and split > 1 else part

    def _attention(self, layer: str, part: str, shape: Sequence[int]) -> Iterator[Tensor]:
        everyone = [self.giver(expert) for expert in range(self.graft.num_experts)]
        if part[0] in "kv" and self.graft.attention == "kv-shared":
            yield from self._mean(f"{layer}.{part}", shape, self.givers)
        elif part == "o_proj.weight":
            for start, stop in _row_blocks(shape):
                rows = [self.reader.read(source, f"{layer}.{part}", start, stop) for source in everyone]
                yield torch.cat(rows, dim=1)
        else:
            name = f"{layer}.o_proj.bias" if part == "o_bias" else f"{layer}.{part}"
            for source in everyone:
                tensor = self.reader.read(source, name)
                yield tensor[None] if part == "o_bias" else tensor

    def _mean(self, name: str, shape: Sequence[int], sources: Sequence[int]) -> Iterator[Tensor]:
        for start, stop in _row_blocks(shape):
            yield mean([self.reader.read(source, name, start, stop) for source in sources])


def whole(blocks: Iterable[Tensor]) -> Tensor:
    """The blocks of one tensor, together."""
    parts = list(blocks)
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _row_blocks(shape: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Rows from and to, so that a block has at most `BLOCK_ELEMENTS` elements, or one row."""
    rows = shape[0] if shape else 1
    step = max(1, BLOCK_ELEMENTS * rows // max(1, math.prod(shape)))
    for start in range(0, rows, step):
        yield start, min(start + step, rows)
