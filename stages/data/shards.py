"""Writing the parquet shards of a Dataset: rows in order, one shard after another, equal rows giving equal bytes."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Final, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

SHARD_BYTES: Final = 256 * 2**20
"""Size of a shard in memory, above which the next one begins."""

TEXT: Final = pa.schema([("text", pa.string())])
IDS: Final = "input_ids"
POSITIONS: Final = "position_ids"


def tokens_schema(sequence_length: int, apart: bool = False) -> pa.Schema:
    """The columns of packed tokens: `input_ids`, lists of int32 of one length.

    With `apart` also `position_ids`, the same of each token's place in its document: the documents of a window are
    not to see each other.
    """
    names = [IDS, POSITIONS] if apart else [IDS]
    return pa.schema([pa.field(name, pa.list_(pa.int32(), sequence_length)) for name in names])


class ShardWriter:
    """Appends tables of one schema to `shard-00000.parquet`, `shard-00001.parquet`, … in `directory`."""

    def __init__(self, directory: Path, schema: pa.Schema, shard_bytes: int = SHARD_BYTES) -> None:
        self.num_rows = 0
        self._directory, self._schema, self._limit = directory, schema, shard_bytes
        self._writer: pq.ParquetWriter | None = None
        self._num_shards = self._shard_bytes = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def write_texts(self, texts: list[str]) -> None:
        """Append documents."""
        self._write(pa.table({"text": pa.array(texts, pa.string())}, schema=self._schema))

    def write_windows(self, ids_NT: np.ndarray, positions_NT: np.ndarray | None = None) -> None:
        """Append windows of token ids, int32 [N, T], with the position of each token where the schema has it."""
        columns = {IDS: ids_NT} | ({} if positions_NT is None else {POSITIONS: positions_NT})
        self._write(pa.table({name: _lists(values_NT) for name, values_NT in columns.items()}, schema=self._schema))

    def _write(self, table: pa.Table) -> None:
        if self._writer is None:
            file = self._directory / f"shard-{self._num_shards:05d}.parquet"
            self._writer = pq.ParquetWriter(file, self._schema, compression="zstd")
            self._num_shards, self._shard_bytes = self._num_shards + 1, 0
        self._writer.write_table(table)
        self.num_rows += table.num_rows
        self._shard_bytes += table.nbytes
        if self._shard_bytes >= self._limit:
            self.close()

    def close(self) -> None:
        """Finish the shard that is open."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def _lists(values_NT: np.ndarray) -> pa.FixedSizeListArray:
    return pa.FixedSizeListArray.from_arrays(pa.array(values_NT.reshape(-1), pa.int32()), values_NT.shape[1])
