"""Reading a packed `tokens` dataset: windows of one length, by index, without holding them in memory.

Parquet is compressed and cannot be mapped, so the first reader decodes the shards once into a flat file of int32 under
`cache_dir`; every reader, and every worker of a machine, then maps that one file. The file appears in one atomic step.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from stages.artifacts import Dataset
from stages.data.reading import column_names, read_batches
from stages.data.shards import IDS, POSITIONS
from stages.errors import UserError

BATCH_ROWS = 4096
"""Rows decoded at once: 32 MB for windows of 2048 tokens."""


class TokenWindows:
    """The N windows of T token ids of a packed `tokens` dataset, read by index.

    `apart` says that the reader keeps the documents of a window from seeing each other where the dataset asks for it
    (see `positions`); without it such a dataset is refused. Raises UserError for that, and when the dataset is no
    packed `tokens` dataset, is empty, or a row has another length.
    """

    def __init__(self, dataset: Dataset, cache_dir: Path, *, apart: bool = False) -> None:
        card = dataset.card
        if card.schema != "tokens" or card.sequence_length < 1:
            raise UserError(
                f"{dataset.path} holds {card.schema} in rows of any length, expected packed tokens",
                fix="prepare the data with `data.prepare`, which packs tokens into windows of one length",
            )
        self.sequence_length = card.sequence_length
        self.apart = keeps_documents_apart(dataset)
        if self.apart and not apart:
            raise UserError(
                f"the documents in the windows of {dataset.path} are not to see each other (attention: document), and "
                "this stage would let them",
                fix="prepare the data with attention: window, or use a stage that keeps documents apart: "
                "upcycle.branch",
            )
        self._ids_NT = self._mapped(dataset, cache_dir, IDS)
        self._positions_NT = self._mapped(dataset, cache_dir, POSITIONS) if self.apart else None

    def __len__(self) -> int:
        return self._ids_NT.shape[0]

    def __getitem__(self, index: int) -> Tensor:
        """Window `index` as int64 [T]."""
        return torch.from_numpy(self._ids_NT[index].astype(np.int64))

    def stack(self, indices: Sequence[int]) -> Tensor:
        """The windows at `indices` as int64 [len(indices), T]."""
        return torch.from_numpy(self._ids_NT[list(indices)].astype(np.int64))

    def positions(self, indices: Sequence[int]) -> Tensor | None:
        """Where the tokens of the windows at `indices` stand in their documents, int64 [len(indices), T].

        0 begins a document, or what a window has of one. None when documents may see each other.
        """
        if self._positions_NT is None:
            return None
        return torch.from_numpy(self._positions_NT[list(indices)].astype(np.int64))

    def tensor(self, limit: int | None = None) -> Tensor:
        """The first `limit` windows (all of them without one) as int64 [n, T]."""
        return torch.from_numpy(self._ids_NT[:limit].astype(np.int64))

    def _mapped(self, dataset: Dataset, cache_dir: Path, column: str) -> np.ndarray:
        file = _decoded(dataset, cache_dir, column)
        num_windows = file.stat().st_size // (4 * self.sequence_length)
        if num_windows == 0:
            raise UserError(f"{dataset.path} has no rows", fix="give it more text, or shorter windows")
        return np.memmap(file, dtype=np.int32, mode="r", shape=(num_windows, self.sequence_length))


def keeps_documents_apart(dataset: Dataset) -> bool:
    """Whether the documents in a window are not to see each other."""
    return bool(dataset.shards) and POSITIONS in column_names(dataset.shards[0])


def _decoded(dataset: Dataset, cache_dir: Path, column: str) -> Path:
    cache_dir.mkdir(parents=True, exist_ok=True)
    suffix = ".int32" if column == IDS else f".{column}.int32"
    file = cache_dir / f"{_content_name(dataset)}{suffix}"
    if not file.exists():
        # Several workers may come here at once: each writes its own file, the last rename wins, all are equal.
        descriptor, temporary = tempfile.mkstemp(dir=cache_dir, suffix=".part")
        try:
            with os.fdopen(descriptor, "wb") as target:
                for rows in _rows(dataset, column):
                    target.write(rows.tobytes())
            Path(temporary).replace(file)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    return file


def _content_name(dataset: Dataset) -> str:
    if dataset.digest:
        return dataset.digest
    stats = [(shard.name, shard.stat().st_size, shard.stat().st_mtime_ns) for shard in dataset.shards]
    return hashlib.sha256(repr((str(dataset.path.resolve()), stats)).encode()).hexdigest()


def _rows(dataset: Dataset, name: str) -> Iterator[np.ndarray]:
    length = dataset.card.sequence_length
    for shard in dataset.shards:
        for batch in read_batches(shard, BATCH_ROWS, columns=[name]):
            column = batch.column(0)
            fixed = pa.types.is_fixed_size_list(column.type)
            lengths = np.full(len(column), column.type.list_size) if fixed else np.diff(column.offsets.to_numpy())
            if (lengths != length).any():
                raise UserError(
                    f"{shard} has a row of {lengths[lengths != length][0]} tokens, dataset.json declares {length}",
                    fix="the dataset is damaged or was not packed; prepare it again",
                )
            yield column.flatten().to_numpy(zero_copy_only=False).astype(np.int32, copy=False)
