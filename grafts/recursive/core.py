"""The recursive core: layers that begin, a block of layers that is looped, layers that end.

This is bookkeeping alone: which layer runs with whose parameters, and where a loop is over. Every loop keeps layers of
its own in the model, because a layer that ran twice would write over its own cache; they share parameters instead.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from grafts.depth import uniform_layers

Order = Literal["cycle", "sequence"]
"""How a block of layers a, b repeats: a b a b, or a a b b."""


@dataclass(frozen=True)
class Core:
    """`num_layers` layers, of which all but the first `begin` and the last `end` are `loops` runs of one block.

    ValueError when the layers between do not divide into that many loops.
    """

    num_layers: int
    loops: int
    begin: int = 0
    end: int = 0
    order: Order = "cycle"

    def __post_init__(self) -> None:
        between = self.num_layers - self.begin - self.end
        if between < 1:
            raise ValueError(
                f"{self.begin} layers to begin and {self.end} to end leave none of {self.num_layers} to loop over"
            )
        if between % self.loops:
            fits = [str(loops) for loops in range(1, between + 1) if between % loops == 0]
            raise ValueError(
                f"the {between} layers between beginning and end do not divide into {self.loops} loops: "
                f"they do into {', '.join(fits)}; or keep other layers at the beginning or the end"
            )

    @property
    def block(self) -> int:
        """Layers in the looped block."""
        return (self.num_layers - self.begin - self.end) // self.loops

    @property
    def owners(self) -> range:
        """The layers that hold the block's parameters: the first of those that share."""
        step = 1 if self.order == "cycle" else self.loops
        return range(self.begin, self.begin + self.block * step, step)

    def runs(self, owner: int) -> range:
        """The layers that run with the parameters of layer `owner`, itself first."""
        step = self.block if self.order == "cycle" else 1
        return range(owner, owner + self.loops * step, step)

    def ties(self) -> Iterator[tuple[int, int]]:
        """(layer, the layer whose parameters it shares) for every layer that is not an owner."""
        for owner in self.owners:
            for layer in self.runs(owner)[1:]:
                yield layer, owner

    def ends(self) -> list[int]:
        """How many layers have run when each loop of a cycle is over; in a sequence, each layer of the block."""
        step = self.block if self.order == "cycle" else self.loops
        return list(range(self.begin + step, self.num_layers - self.end + 1, step))

    def spaced(self) -> list[int]:
        """As many layers of the looped part as the block has, evenly spaced, the first and the last among them."""
        between = self.block * self.loops
        chosen = [0] if self.block == 1 else uniform_layers(between, self.block)
        return [self.begin + layer for layer in chosen]

    def require_one_kind(self, config: dict[str, Any]) -> None:
        """ValueError when a list of `config` with an entry for each layer would have one layer be of two kinds."""
        for name, kinds in config.items():
            if "layer" not in name or not isinstance(kinds, list) or len(kinds) != self.num_layers:
                continue
            for layer, owner in self.ties():
                if kinds[layer] != kinds[owner]:
                    raise ValueError(
                        f"layers {owner} and {layer} would share parameters, but {name} has {kinds[owner]} for the one "
                        f"and {kinds[layer]} for the other: choose loops so that the block of {self.block} layers is a "
                        "multiple of that pattern"
                    )
