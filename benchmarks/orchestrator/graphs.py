"""The same graphs of trivial stages for every tool: each stage joins what is above it and adds its own mark."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Shape = Literal["chain", "fan", "diamonds"]
WIDTH = 10


@dataclass(frozen=True)
class Graph:
    """Stage name → the stages above it, sources first; and the mark that each stage writes."""

    above: Mapping[str, tuple[str, ...]]
    marks: Mapping[str, str]

    @property
    def last(self) -> str:
        """The stage below all others."""
        return list(self.above)[-1]

    def marked(self, stage: str, mark: str) -> Graph:
        """The same graph with one parameter of one stage changed."""
        return Graph(self.above, {**self.marks, stage: mark})


def make_graph(shape: Shape, count: int) -> Graph:
    """A chain of `count`, a fan (one, many, one) of `count`, or `count` diamonds in a row, each ten wide."""
    above = {"chain": _chain, "fan": _fan, "diamonds": _diamonds}[shape](count)
    return Graph(above, dict.fromkeys(above, "0"))


def _chain(count: int) -> dict[str, tuple[str, ...]]:
    return {f"s{index}": (f"s{index - 1}",) if index else () for index in range(count)}


def _fan(count: int) -> dict[str, tuple[str, ...]]:
    middle = tuple(f"s{index}" for index in range(1, count - 1))
    return {"s0": (), **dict.fromkeys(middle, ("s0",)), f"s{count - 1}": middle}


def _diamonds(count: int) -> dict[str, tuple[str, ...]]:
    above: dict[str, tuple[str, ...]] = {"s0": ()}
    for index in range(count):
        wide = tuple(f"w{index}x{number}" for number in range(WIDTH))
        above.update(dict.fromkeys(wide, (f"s{index}",)))
        above[f"s{index + 1}"] = wide
    return above
