"""The handbook as a dataset: a behaviour a row."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.parquet as pq

from stages.agent.handbook.entries import Behaviour, Handbook
from stages.artifacts import Dataset, DatasetCard
from stages.data.reading import read_batches
from stages.errors import UserError

_COLUMNS: Final = pa.schema(
    [("text", pa.string()), ("name", pa.string()), ("instruction", pa.string()), ("topic", pa.string())]
)


def write_handbook(directory: Path, handbook: Handbook, **about: str) -> None:
    """Write a `text` dataset; `about` are `licence` and `source` of its card."""
    rows = [
        {"text": entry.text, "name": entry.name, "instruction": entry.instruction, "topic": entry.topic}
        for entry in handbook.entries
    ]
    pq.write_table(pa.Table.from_pylist(rows, _COLUMNS), directory / "shard-00000.parquet", compression="zstd")
    DatasetCard("text", len(rows), sum(len(row["text"].encode()) for row in rows), **about).write(directory)


def read_handbook(dataset: Dataset) -> Handbook:
    """The handbook in a dataset. Raises UserError when it holds other text."""
    batches = [batch for shard in dataset.shards for batch in read_batches(shard)]
    if any(not {"name", "instruction", "topic"} <= set(batch.schema.names) for batch in batches):
        raise UserError(f"{dataset.path} is text, but no handbook", fix="make one with `agent.handbook`")
    rows = [row for batch in batches for row in batch.to_pylist()]
    return Handbook(tuple(Behaviour(row["name"], row["instruction"], row["topic"] or "") for row in rows))
