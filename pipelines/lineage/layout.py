"""Places the nodes of a DAG in layers from left to right (Sugiyama's method, small and deterministic).

Edges that skip layers are bent through the gaps between the boxes in between, by way of slim placeholders: one a layer
for all edges of a node, so that they run together until they part.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from graphlib import TopologicalSorter

SWEEPS = 6
GAP = 9.0
"""Vertical space between neighbours in a layer."""
SLIM = 5.0
"""Height that an edge takes where it passes a layer."""

Edge = tuple[str, str]


@dataclass(frozen=True)
class Layout:
    """Where everything lies: `place` gives layer and vertical centre of a node, `routes` the cells an edge visits."""

    place: Mapping[str, tuple[int, float]]
    routes: Mapping[Edge, Sequence[tuple[int, float]]]
    num_layers: int
    height: float


def arrange(upstream: Mapping[str, Sequence[str]], box_height: float) -> Layout:
    """Lay out the graph given as each node's upstream nodes; raises `graphlib.CycleError` on a cycle."""
    layer = _layers(upstream)
    chains = {(a, b): _chain(a, b, layer) for b, parents in upstream.items() for a in parents}
    cells = _Cells(layer, chains, box_height)
    for sweep in range(SWEEPS):
        cells.sort(forward=sweep % 2 == 0)
    for sweep in range(SWEEPS):
        cells.settle(forward=sweep % 2 == 0)
    centres, height = cells.centres()
    place = {name: (layer[name], centres[name]) for name in upstream}
    routes = {edge: [(layer[edge[0]] + i, centres[cell]) for i, cell in enumerate(c)] for edge, c in chains.items()}
    return Layout(place, routes, 1 + max(layer.values(), default=0), height)


def _layers(upstream: Mapping[str, Sequence[str]]) -> dict[str, int]:
    """Longest path from a source; a source itself moves right, next to the first stage that reads it."""
    layer: dict[str, int] = {}
    for name in TopologicalSorter(upstream).static_order():
        layer[name] = max((layer[parent] + 1 for parent in upstream[name]), default=0)
    readers: dict[str, list[int]] = {}
    for name, parents in upstream.items():
        for parent in parents:
            readers.setdefault(parent, []).append(layer[name])
    return {
        name: min(readers[name]) - 1 if not upstream[name] and name in readers else at for name, at in layer.items()
    }


def _chain(start: str, end: str, layer: Mapping[str, int]) -> list[str]:
    between = [f"{start}\0{at}" for at in range(layer[start] + 1, layer[end])]
    return [start, *between, end]


class _Cells:
    """Boxes and placeholders by layer, with their order and height in it."""

    def __init__(self, layer: Mapping[str, int], chains: Mapping[Edge, list[str]], box_height: float) -> None:
        self.rows: list[list[str]] = [[] for _ in range(1 + max(layer.values(), default=0))]
        self.tall = dict.fromkeys(layer, box_height)
        self.before: dict[str, list[str]] = {}
        self.after: dict[str, list[str]] = {}
        for name, at in layer.items():
            self.rows[at].append(name)
        passed = {cell: layer[start] + at for (start, _), chain in chains.items() for at, cell in enumerate(chain[:-1])}
        for cell, at in passed.items():
            if cell not in layer:
                self.rows[at].append(cell)
        for a, b in dict.fromkeys(pair for chain in chains.values() for pair in itertools.pairwise(chain)):
            self.after.setdefault(a, []).append(b)
            self.before.setdefault(b, []).append(a)
        self.centre = {cell: y for row in self.rows for cell, y in zip(row, self._stack(row), strict=True)}

    def sort(self, *, forward: bool) -> None:
        """Order each layer by the mean position of the neighbours on one side, so that edges cross less."""
        for row in self.rows if forward else self.rows[::-1]:
            wanted = {cell: self._wanted(cell, forward) for cell in row}
            row.sort(key=wanted.__getitem__)
            self.centre |= dict(zip(row, self._stack(row), strict=True))

    def settle(self, *, forward: bool) -> None:
        """Move cells towards their neighbours' height, in order and without overlap."""
        for row in self.rows if forward else self.rows[::-1]:
            wanted = [self._wanted(cell, forward) for cell in row]
            self.centre |= dict(zip(row, self._spread(row, wanted), strict=True))

    def centres(self) -> tuple[dict[str, float], float]:
        """Heights counted from the top of the picture, and the height of all of it."""
        top = min((y - self._half(cell) for cell, y in self.centre.items()), default=0.0)
        bottom = max((y + self._half(cell) for cell, y in self.centre.items()), default=0.0)
        return {cell: y - top for cell, y in self.centre.items()}, bottom - top

    def _half(self, cell: str) -> float:
        return self.tall.get(cell, SLIM) / 2

    def _wanted(self, cell: str, forward: bool) -> float:
        near = (self.before if forward else self.after).get(cell)
        return sum(self.centre[other] for other in near) / len(near) if near else self.centre[cell]

    def _stack(self, row: Sequence[str]) -> list[float]:
        """The row packed tightly around height 0."""
        return self._spread(row, [0.0] * len(row))

    def _spread(self, row: Sequence[str], wanted: Sequence[float]) -> list[float]:
        """Heights near `wanted` that leave the gap: the mean of packing downwards and packing upwards."""
        down = self._pack(row, wanted)
        up = [-y for y in self._pack(row[::-1], [-y for y in wanted[::-1]])][::-1]
        return [(a + b) / 2 for a, b in zip(down, up, strict=True)]

    def _pack(self, row: Sequence[str], wanted: Sequence[float]) -> list[float]:
        placed: list[float] = []
        for index, cell in enumerate(row):
            least = placed[-1] + self._half(row[index - 1]) + GAP + self._half(cell) if placed else wanted[index]
            placed.append(max(wanted[index], least))
        return placed
