"""Reading a cached teacher by window, without holding it in memory.

As with token windows, the compressed shards are decoded once into flat files that every worker of a machine maps.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow.parquet as pq
import torch

from stages.artifacts import Dataset
from stages.distill.cache_card import CacheCard
from stages.distill.teachers import TopTeacher
from stages.training.recipe import Batch

COLUMNS: Final = ("top_ids", "top_log_probs", "tail_log_mass")


class CachedTeacher:
    """What a teacher said about N windows of T tokens."""

    def __init__(self, dataset: Dataset, cache_dir: Path) -> None:
        self._num_kept, self._num_positions = CacheCard.of(dataset).top_k, dataset.card.sequence_length - 1
        self._columns = {name: _decoded(dataset, name, cache_dir) for name in COLUMNS}

    def tensors(self, indices: Sequence[int]) -> dict[str, torch.Tensor]:
        """What it said on the windows at `indices`: ids and log-probabilities [B, T - 1, k], tails [B, T - 1]."""
        found = {name: torch.from_numpy(_wide(column[list(indices)])) for name, column in self._columns.items()}
        shape = (len(indices), self._num_positions, self._num_kept)
        return {name: x if name == "tail_log_mass" else x.view(shape) for name, x in found.items()}


def top_teacher(batch: Batch) -> TopTeacher:
    """The cached teacher of a batch that holds `CachedTeacher.tensors`."""
    ids, log_probs, tail = (batch.tensors[name] for name in COLUMNS)
    return TopTeacher(ids.flatten(0, 1), log_probs.flatten(0, 1), tail.flatten())


def _wide(values: np.ndarray) -> np.ndarray:
    return values.astype(np.float32 if values.dtype.kind == "f" else np.int64)


def _decoded(dataset: Dataset, column: str, cache_dir: Path) -> np.ndarray:
    """All rows of `column`, [N, …], mapped from a file that the first reader writes."""
    name = dataset.digest or hashlib.sha256(str(dataset.path.resolve()).encode()).hexdigest()
    file = cache_dir / f"{name}.{column}.npy"
    if not file.exists():
        _decode(dataset, column, file)
    return np.load(file, mmap_mode="r")


def _decode(dataset: Dataset, column: str, file: Path) -> None:
    """Shard by shard, in one atomic step; several workers may do it at once, all files are equal."""
    file.parent.mkdir(parents=True, exist_ok=True)
    first = _values(dataset.shards[0], column)
    descriptor, temporary = tempfile.mkstemp(dir=file.parent, suffix=".part")
    os.close(descriptor)
    rows = np.lib.format.open_memmap(
        temporary, mode="w+", dtype=first.dtype, shape=(dataset.card.num_rows, first.shape[1])
    )
    start = 0
    for shard in dataset.shards:
        values = _values(shard, column)
        rows[start : start + len(values)] = values
        start += len(values)
    rows.flush()
    Path(temporary).replace(file)


def _values(shard: Path, column: str) -> np.ndarray:
    found = pq.read_table(shard, columns=[column])[0].combine_chunks()
    return found.flatten().to_numpy(zero_copy_only=False).reshape(len(found), -1)
