"""What GlowQ is to be compared with: one correction a module, and the same bytes spent another way.

All of them are the truncated singular value decomposition of E S for some positive S; they differ in what they let S
know of the inputs x. Comparisons are honest at equal bytes, which `rank_for` and `selection.choose` give.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final, Literal, NamedTuple

import torch
from torch import Tensor

from grafts.lowrank.covariance import Roots, diagonal_roots, roots
from grafts.lowrank.glowq import Correction, solve
from grafts.lowrank.selection import choose, ranked

Method = Literal["zeroquant", "lqer", "qera_approx", "qera_exact"]


def zeroquant(covariance_II: Tensor, magnitude_I: Tensor) -> Roots:  # noqa: ARG001, one signature for all
    """S is the identity: the error of the weight itself. ZeroQuant-V2's LoRC, arXiv 2303.08302."""
    return diagonal_roots(torch.ones_like(magnitude_I))


def lqer(covariance_II: Tensor, magnitude_I: Tensor) -> Roots:  # noqa: ARG001
    """S holds the mean magnitude of each input. L2QER, arXiv 2402.02446."""
    return diagonal_roots(magnitude_I.square())


def qera_approx(covariance_II: Tensor, magnitude_I: Tensor) -> Roots:  # noqa: ARG001
    """S holds the root mean square of each input: exact for uncorrelated inputs. arXiv 2410.06040, theorem 2."""
    return diagonal_roots(covariance_II.diagonal())


def qera_exact(covariance_II: Tensor, magnitude_I: Tensor) -> Roots:  # noqa: ARG001
    """S is Sigma^{1/2}: exact for the module. arXiv 2410.06040, theorem 1."""
    return roots(covariance_II)


METHODS: Final[Mapping[Method, Callable[[Tensor, Tensor], Roots]]] = {
    "zeroquant": zeroquant,
    "lqer": lqer,
    "qera_approx": qera_approx,
    "qera_exact": qera_exact,
}


def solve_separately(
    errors: Sequence[Tensor], weighting: Roots, rank: int, *, seed: int = 0, randomised: bool = True
) -> list[Correction]:
    """A correction of its own, with a right factor of its own, for each of `errors`."""
    return [solve([error], weighting, rank, seed=seed, randomised=randomised) for error in errors]


class Shape(NamedTuple):
    """What decides the size of a group's correction."""

    outputs: tuple[int, ...]
    """O_i of each module"""
    inputs: int


def num_values(shape: Shape, rank: int, *, shared: bool) -> int:
    """Numbers that the factors of rank `rank` hold: R (sum of O_i + I), or R (O_i + I) for each module."""
    num_right = 1 if shared else len(shape.outputs)
    return rank * (sum(shape.outputs) + num_right * shape.inputs)


def rank_for(shape: Shape, budget: int, *, shared: bool) -> int:
    """The largest rank whose factors hold at most `budget` numbers; it never exceeds what the errors can have."""
    return min(budget // num_values(shape, 1, shared=shared), shape.inputs, sum(shape.outputs))


def rank_of_equal_size(shape: Shape, separate_rank: int) -> int:
    """The rank of a shared correction that is as large as separate ones of rank `separate_rank`, rounded down."""
    return rank_for(shape, num_values(shape, separate_rank, shared=False), shared=True)


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
