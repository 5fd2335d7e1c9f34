"""Reading a packed `tokens` dataset: windows of one length, by index, without holding them in memory.

Parquet is compressed and cannot be mapped, so the first reader decodes a column of the shards once into a flat file
under `cache_dir`; every reader, and every worker of a machine, then maps that file. It appears in one atomic step.
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

BATCH_VALUES = 2**23
"""Values decoded at once: 32 MB of int32."""
TOKEN_TYPE = np.dtype(np.int32)


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
        self._ids_NT = mapped(dataset, cache_dir, IDS, self.sequence_length)
        self._positions_NT = mapped(dataset, cache_dir, POSITIONS, self.sequence_length) if self.apart else None

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


def mapped(dataset: Dataset, cache_dir: Path, column: str, length: int, dtype: np.dtype = TOKEN_TYPE) -> np.memmap:
    """A column of lists of `length` numbers each, [N, length]. Raises UserError when it is empty, or a list is not."""
    file = _decoded(dataset, cache_dir, column, length, dtype)
    num_rows = file.stat().st_size // (dtype.itemsize * length)
    if num_rows == 0:
        raise UserError(f"{dataset.path} has no rows", fix="give it more text, or shorter windows")
    return np.memmap(file, dtype=dtype, mode="r", shape=(num_rows, length))


def keeps_documents_apart(dataset: Dataset) -> bool:
    """Whether the documents in a window are not to see each other."""
    return bool(dataset.shards) and POSITIONS in column_names(dataset.shards[0])


def _decoded(dataset: Dataset, cache_dir: Path, column: str, length: int, dtype: np.dtype) -> Path:
    cache_dir.mkdir(parents=True, exist_ok=True)
    file = cache_dir / f"{_content_name(dataset)}.{column}.{dtype.name}"
    if not file.exists():
        # Several workers may come here at once: each writes its own file, the last rename wins, all are equal.
        descriptor, temporary = tempfile.mkstemp(dir=cache_dir, suffix=".part")
        try:
            with os.fdopen(descriptor, "wb") as target:
                for rows in _rows(dataset, column, length, dtype):
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


def _rows(dataset: Dataset, name: str, length: int, dtype: np.dtype) -> Iterator[np.ndarray]:
    unit = "tokens" if name == IDS else f"values of {name}"
    for shard in dataset.shards:
        for batch in read_batches(shard, max(1, BATCH_VALUES // length), columns=[name]):
            column = batch.column(0)
            fixed = pa.types.is_fixed_size_list(column.type)
            lengths = np.full(len(column), column.type.list_size) if fixed else np.diff(column.offsets.to_numpy())
            if (lengths != length).any():
                raise UserError(
                    f"{shard} has a row of {lengths[lengths != length][0]} {unit}, dataset.json declares {length}",
                    fix="the dataset is damaged or was not packed; prepare it again",
                )
            yield column.flatten().to_numpy(zero_copy_only=False).astype(dtype, copy=False)
