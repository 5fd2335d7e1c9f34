"""Which dataset comes next, so that each has its share at every moment and not only in the end.

This is the chairman assignment problem, and the rule is Tijdeman's (Discrete Mathematics 32, 1980): among the datasets
that are due, take the one whose turn runs out first. With k datasets, after any number n of picks, dataset i has been
picked n·w_i times up to 1 - 1/(2k - 2), the least that any rule can promise; so over any n picks in a row its count is
off by less than 2. All numbers are exact fractions: nothing drifts.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from fractions import Fraction


class Interleaving(Iterator[int]):
    """An endless sequence of indices into `weights` (positive, in any unit), a pure function of them.

    `counts` says how often each has been picked so far.
    """

    def __init__(self, weights: Sequence[Fraction]) -> None:
        if not weights or min(weights) <= 0:
            raise ValueError(f"weights must be positive, and there must be some: {list(weights)}")
        self.shares = [Fraction(weight) / sum(weights) for weight in weights]
        self.counts = [0] * len(weights)
        self._slack = slack(len(weights))
        self._turn = 0
        self._releases = [self._release(index) for index in range(len(weights))]
        self._deadlines = [self._deadline(index) for index in range(len(weights))]

    def __next__(self) -> int:
        self._turn += 1
        due = [index for index, release in enumerate(self._releases) if self._turn >= release]
        picked = min(due, key=self._deadlines.__getitem__)
        self.counts[picked] += 1
        self._releases[picked], self._deadlines[picked] = self._release(picked), self._deadline(picked)
        return picked

    def _release(self, index: int) -> int:
        """The first turn at which another pick does not put it too far ahead."""
        return math.ceil((self.counts[index] + 1 - self._slack) / self.shares[index])

    def _deadline(self, index: int) -> Fraction:
        """The turn after which it is too far behind."""
        return (self.counts[index] + self._slack) / self.shares[index]


def slack(num_weights: int) -> Fraction:
    """How far a count may be from its share after any number of picks, in picks: 1 - 1/(2k - 2)."""
    return Fraction(0) if num_weights == 1 else 1 - Fraction(1, 2 * num_weights - 2)
