"""More bits for single linears: what each gains, and which of them a budget of bytes pays for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, NamedTuple

from grafts.lowrank.comparators import Upgrade, spend_on_bits
from grafts.packing import packed_bytes
from grafts.rtn import Bits
from stages.quantize.calibrate import Method, Solved, output_errors
from stages.quantize.layers import Layer
from stages.quantize.packed import Scheme

NEXT: Final[Mapping[Bits, Bits]] = {2: 3, 3: 4, 4: 8}


class Upgraded(NamedTuple):
    """One linear in more bits."""

    solved: Solved
    error: float
    """||(W - W') X|| / ||W X||"""
    upgrade: Upgrade


def higher(scheme: Scheme) -> Scheme:
    """The same groups in the next number of bits."""
    return replace(scheme, bits=NEXT[scheme.bits])


@dataclass
class Upgradable(Method):
    """The codes of `base`, and of every linear those in `scheme` besides: by `upper`, or rounded to nearest."""

    base: Method
    scheme: Scheme
    upper: Method | None
    upgrades: dict[str, Upgraded] = field(default_factory=dict)

    @property
    def rounds(self) -> bool:
        """Whether the base rounds to nearest."""
        return self.base.rounds

    def details(self) -> Mapping[str, Any]:
        """What the base tells."""
        return self.base.details()

    def solve(self, layer: Layer) -> Mapping[str, Solved]:
        """The codes of the base; those of more bits are kept aside."""
        solved = self.base.solve(layer)
        above = self.upper.solve(layer) if self.upper else {}
        for name, each in solved.items():
            better = above.get(name) or each._replace(quantised=self.scheme.round(each.weight))
            self.upgrades[name] = self._compared(each, better)
        return solved

    def choose(self, num_bytes: float) -> list[str]:
        """The linears to upgrade for `num_bytes` more: those first whose relative squared error drops most a byte."""
        names = [name for name, found in self.upgrades.items() if found.upgrade.drop > 0]
        picked = spend_on_bits([self.upgrades[name].upgrade for name in names], int(num_bytes))
        return [names[index] for index in picked]

    def _compared(self, each: Solved, better: Solved) -> Upgraded:
        (before,) = output_errors(each)
        (after,) = output_errors(better)
        added = self._bytes(better, self.scheme.bits) - self._bytes(each, _lower(self.scheme.bits))
        kept = better._replace(covariance=each.covariance.new_empty(0))  # a slice would keep all of it
        return Upgraded(kept, after, Upgrade(before**2 - after**2, added))

    def _bytes(self, solved: Solved, bits: Bits) -> int:
        grid, value_bytes = self.scheme, solved.quantised.scale.itemsize
        return packed_bytes(
            *solved.weight.shape, bits, grid.group_size, symmetric=grid.symmetric, scale_bytes=value_bytes
        )


def _lower(bits: Bits) -> Bits:
    return next(low for low, high in NEXT.items() if high == bits)
