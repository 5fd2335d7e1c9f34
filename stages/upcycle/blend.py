"""Training on several datasets at once, each in a fixed share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

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

    keeps_apart: ClassVar[bool] = True
    more: Sequence[Dataset] = ()
    shares: Sequence[float] = (1.0,)
    """Of `data`, then of each of `more`."""
    _sources: list[TokenWindows] = field(default_factory=list, repr=False)

    def prepare(self, worker: Worker) -> None:
        """Map the data."""
        super().prepare(worker)
        self._sources = [self.windows, *(TokenWindows(each, self.cache, apart=self.keeps_apart) for each in self.more)]

    @property
    def apart(self) -> bool:
        """Whether any of the datasets keeps its documents apart."""
        return any(source.apart for source in self._sources)

    @property
    def num_samples(self) -> int:
        """Windows of an epoch."""
        return sum(epoch_counts(len(self.windows), self.shares))

    def batch(self, indices: Sequence[int]) -> Batch:
        """Windows [B, T] of token ids; those of the first dataset have the first numbers, and so on."""
        places = [self._place(index) for index in indices]
        ids_BT = torch.stack([source[index] for source, index in places])
        if not self.apart:
            return Batch({"ids_BT": ids_BT}, num_targets=ids_BT.shape[0] * (ids_BT.shape[1] - 1))
        positions_BT = torch.cat([_positions(source, index) for source, index in places])
        return Batch({"ids_BT": ids_BT, "positions_BT": positions_BT}, num_targets=int((positions_BT[:, 1:] > 0).sum()))

    def _place(self, number: int) -> tuple[TokenWindows, int]:
        """The dataset that window `number` of an epoch is of, and its index there."""
        for source, count in zip(self._sources, epoch_counts(len(self.windows), self.shares), strict=True):
            if number < count:
                few = count >= len(source)
                return source, number % len(source) if few else number * len(source) // count
            number -= count
        raise IndexError(f"the epoch has {self.num_samples} windows")


def _positions(source: TokenWindows, index: int) -> Tensor:
    """int64 [1, T]; a window whose documents may see each other counts through."""
    positions_1T = source.positions([index])
    return torch.arange(source.sequence_length)[None] if positions_1T is None else positions_1T
