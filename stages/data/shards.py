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


def tokens_schema(sequence_length: int) -> pa.Schema:
    """The columns of packed tokens: `input_ids`, lists of int32 of one length."""
    return pa.schema([pa.field("input_ids", pa.list_(pa.int32(), sequence_length))])


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

    def write_windows(self, ids_NT: np.ndarray) -> None:
        """Append windows of token ids, int32 [N, T]."""
        column = pa.FixedSizeListArray.from_arrays(pa.array(ids_NT.reshape(-1), pa.int32()), ids_NT.shape[1])
        self._write(pa.table({"input_ids": column}, schema=self._schema))

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
