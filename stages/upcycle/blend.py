"""Training on several datasets at once, each in a fixed share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from stages.artifacts import Dataset
from stages.data.windows import TokenWindows
from stages.training.language_model import LanguageModelling
from stages.training.recipe import Batch, Worker


def epoch_counts(num_windows: int, shares: Sequence[float]) -> list[int]:
    """Windows of each dataset in an epoch that has the `num_windows` of the first once; `shares` sum to 1."""
    return [round(num_windows * share / shares[0]) for share in shares]


@dataclass
class Blended(LanguageModelling):
    """Windows of `data` and of `more`, in the `shares` of the two together.

    An epoch has every window of `data` once. Of a dataset that has more windows than its share takes, those used are
    spread evenly over it; of one that has fewer, they repeat.
    """

    more: Sequence[Dataset] = ()
    shares: Sequence[float] = (1.0,)
    """Of `data`, then of each of `more`."""
    _sources: list[TokenWindows] = field(default_factory=list, repr=False)

    def prepare(self, worker: Worker) -> None:
        """Map the data."""
        super().prepare(worker)
        self._sources = [self.windows, *(TokenWindows(each, self.cache) for each in self.more)]

    @property
    def num_samples(self) -> int:
        """Windows of an epoch."""
        return sum(epoch_counts(len(self.windows), self.shares))

    def batch(self, indices: Sequence[int]) -> Batch:
        """Windows [B, T] of token ids; those of the first dataset have the first numbers, and so on."""
        ids_BT = torch.stack([self._window(index) for index in indices])
        return Batch({"ids_BT": ids_BT}, num_targets=ids_BT.shape[0] * (ids_BT.shape[1] - 1))

    def _window(self, number: int) -> Tensor:
        for source, count in zip(self._sources, epoch_counts(len(self.windows), self.shares), strict=True):
            if number < count:
                few = count >= len(source)
                return source[number % len(source) if few else number * len(source) // count]
            number -= count
        raise IndexError(f"the epoch has {self.num_samples} windows")
