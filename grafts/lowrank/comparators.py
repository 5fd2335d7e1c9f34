"""What GlowQ is to be compared with: one correction a module, and the same bytes spent another way.

Corrections of one module are truncated singular value decompositions of E S for some positive diagonal S; they differ
in what they let S know of the inputs x. Comparisons are honest at equal bytes: `budget` has the ranks for them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final, Literal, NamedTuple

import torch
from torch import Tensor

from grafts.lowrank.covariance import Roots, diagonal_roots
from grafts.lowrank.selection import choose, ranked

Method = Literal["zeroquant", "lqer", "qera_approx"]
"""What S holds; QERA's exact solution (arXiv 2410.06040, theorem 1) is GlowQ's for a group of one."""


def zeroquant(covariance_II: Tensor, magnitude_I: Tensor) -> Roots:  # noqa: ARG001, one signature for all
    """S is the identity: the error of the weight itself. ZeroQuant-V2's LoRC, arXiv 2303.08302."""
    return diagonal_roots(torch.ones_like(magnitude_I))


def lqer(covariance_II: Tensor, magnitude_I: Tensor) -> Roots:  # noqa: ARG001
    """S holds the mean magnitude of each input. L2QER, arXiv 2402.02446."""
    return diagonal_roots(magnitude_I.square())


def qera_approx(covariance_II: Tensor, magnitude_I: Tensor) -> Roots:  # noqa: ARG001
    """S holds the root mean square of each input: exact for uncorrelated inputs. arXiv 2410.06040, theorem 2."""
    return diagonal_roots(covariance_II.diagonal())


METHODS: Final[Mapping[Method, Callable[[Tensor, Tensor], Roots]]] = {
    "zeroquant": zeroquant,
    "lqer": lqer,
    "qera_approx": qera_approx,
}


class Upgrade(NamedTuple):
    """One module stored in more bits instead of being corrected."""

    drop: float
    """By how much its output error falls: the difference of `covariance.output_change` for both codes"""
    num_bytes: int
    """More than before; see `packing.packed_bytes`"""


def spend_on_bits(upgrades: Sequence[Upgrade], budget: int) -> list[int]:
    """Which modules get more bits for `budget` bytes: the largest drop a byte first; nested as the budget grows."""
    # codes fill whole words, so that more bits may take no more bytes
    order = ranked([upgrade.drop / max(upgrade.num_bytes, 1) for upgrade in upgrades])
    return choose(order, [upgrade.num_bytes for upgrade in upgrades], budget)
