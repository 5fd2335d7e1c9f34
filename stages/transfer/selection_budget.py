"""How many units a selection keeps: layers, key-value groups or query heads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from stages.errors import UserError
from stages.transfer.heads import HeadShape
from stages.transfer.selection import count_of

EVERY_LAYER: Final = ("fixed", "layer-random", "layer-interp", "global-interp-c")
"""Strategies that keep something in every layer."""


@dataclass(frozen=True)
class Budget:
    """What was asked for, of a model with `shape`."""

    strategy: str
    ratio: float
    heads: int | None
    """Query heads to keep, instead of `ratio`."""
    heads_per_unit: int
    shape: HeadShape

    @property
    def available(self) -> int:
        """Units that the model has."""
        return self.shape.num_layers * self.shape.num_heads // self.heads_per_unit

    def count(self) -> int:
        """Units to keep. Raises UserError when they are too few for the strategy, too many, or not whole."""
        count = count_of(self.ratio, self.available) if self.heads is None else self._whole(self.heads)
        least = self.shape.num_layers if self.strategy in EVERY_LAYER else 1
        if count < least:
            asked = f"ratio: {self.ratio:g}" if self.heads is None else f"count: {self.heads}"
            reason = f"; {self.strategy} keeps at least one in each of {least} layers" if least > 1 else ""
            raise UserError(
                f"{asked} keeps {count} of {self.available} {self._noun()}{reason}",
                fix=self._enough(least) + (", or choose global-interp" if least > 1 else ""),
            )
        return count

    def _whole(self, heads: int) -> int:
        if heads % self.heads_per_unit or heads > self.available * self.heads_per_unit:
            raise UserError(
                f"count: {heads} heads cannot be kept as {self._noun()} of {self.heads_per_unit}: the model has "
                f"{self.shape}",
                fix=f"give a multiple of {self.heads_per_unit} up to {self.available * self.heads_per_unit}",
            )
        return heads // self.heads_per_unit

    def _noun(self) -> str:
        return {1: "query heads", self.shape.num_heads: "layers"}.get(self.heads_per_unit, "key-value groups")

    def _enough(self, least: int) -> str:
        if self.heads is not None:
            return f"give count: {least * self.heads_per_unit} or more"
        thousandths = next(part for part in range(1, 1001) if count_of(part / 1000, self.available) >= least)
        return f"keep {least} or more, from ratio: {thousandths / 1000}"
