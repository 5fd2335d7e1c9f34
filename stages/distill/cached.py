"""Reading a cached teacher by window, without holding it in memory.

As with token windows, the compressed shards are decoded once into flat files that every worker of a machine maps.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
import torch

from stages.artifacts import Dataset
from stages.data.reading import value_type
from stages.data.windows import mapped
from stages.distill.cache_card import CacheCard
from stages.distill.teachers import TopTeacher
from stages.training.recipe import Batch

TAIL: Final = "tail_log_mass"
COLUMNS: Final = ("top_ids", "top_log_probs", TAIL)


class CachedTeacher:
    """What a teacher said about N windows of T tokens."""

    def __init__(self, dataset: Dataset, cache_dir: Path) -> None:
        self._num_kept, self._num_positions = CacheCard.of(dataset).top_k, dataset.card.sequence_length - 1
        lengths = dict.fromkeys(COLUMNS, self._num_kept * self._num_positions) | {TAIL: self._num_positions}
        self._columns = {
            name: mapped(dataset, cache_dir, name, length, value_type(dataset.shards[0], name))
            for name, length in lengths.items()
        }

    def tensors(self, indices: Sequence[int]) -> dict[str, torch.Tensor]:
        """What it said on the windows at `indices`: ids and log-probabilities [B, T - 1, k], tails [B, T - 1]."""
        found = {name: torch.from_numpy(_wide(column[list(indices)])) for name, column in self._columns.items()}
        shape = (len(indices), self._num_positions, self._num_kept)
        return {name: x if name == TAIL else x.view(shape) for name, x in found.items()}


def top_teacher(batch: Batch) -> TopTeacher:
    """The cached teacher of a batch that holds `CachedTeacher.tensors`."""
    ids, log_probs, tail = (batch.tensors[name] for name in COLUMNS)
    return TopTeacher(ids.flatten(0, 1), log_probs.flatten(0, 1), tail.flatten())


def _wide(values: np.ndarray) -> np.ndarray:
    return values.astype(np.float32 if values.dtype.kind == "f" else np.int64)
