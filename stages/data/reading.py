"""Reading shards: a damaged one is named, and what is wrong with a document is told apart from what it says."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from stages.errors import UserError, first_line, listing

BATCH_DOCUMENTS: Final = 256
"""Documents handled at once."""
BINARY_SHARE: Final = 0.05
"""Share of control and replacement characters from which a text counts as binary."""
_STRANGE: Final = re.compile("[\x00-\x08\x0e-\x1a\x1c-\x1f\x7f\ufffd\ud800-\udfff]")


@dataclass(frozen=True)
class Row:
    """A row of a shard: its number, and its text, or None and the `fault` when it is not one ("" when it is null)."""

    number: int
    text: str | None
    fault: str = ""


def fault_of(text: str) -> str:
    """What makes `text` no text, or ""."""
    strange = _STRANGE.findall(text)
    if not strange:
        return ""
    if "\x00" in strange:
        return "binary: it holds a NUL character"
    if any("\ud800" <= char <= "\udfff" for char in strange):
        return "not Unicode: it holds half a surrogate pair"
    if len(strange) >= BINARY_SHARE * len(text):
        return f"binary: {len(strange)} of {len(text)} characters are control or replacement characters"
    return ""


def read_batches(
    shard: Path,
    rows: int = BATCH_DOCUMENTS,
    *,
    columns: Sequence[str] | None = None,
    row_group: int | None = None,
    first_row: int = 0,
) -> Iterator[pa.RecordBatch]:
    """`columns` of a shard, or of one of its row groups that starts at `first_row`, some `rows` at a time.

    Raises UserError naming the shard and the row when it cannot be read any further, or has no such column.
    """
    number = first_row
    try:
        with pq.ParquetFile(shard) as table:
            _require_columns(table, shard, columns or ())
            groups = range(table.num_row_groups) if row_group is None else [row_group]
            for batch in table.iter_batches(rows, row_groups=groups, columns=columns and list(columns)):
                yield batch
                number += len(batch)
    except FileNotFoundError:
        raise UserError(
            f"{shard} is gone at row {number}, although the dataset had it",
            fix="something removed files of the store; run `regraft verify`, and run the pipeline again",
        ) from None
    except (pa.ArrowException, OSError) as error:
        raise UserError(
            f"{shard} cannot be read at row {number}: {first_line(error)}",
            fix="the shard is damaged; run `regraft verify`, and make the dataset again",
        ) from None


def read_texts(shard: Path, row_group: int | None = None, first_row: int = 0) -> Iterator[list[Row]]:
    """The texts of a shard, or of one of its row groups that starts at `first_row`, in batches.

    Raises UserError like `read_batches`, and for a column `text` of anything but strings.
    """
    number = first_row
    for batch in read_batches(shard, columns=["text"], row_group=row_group, first_row=first_row):
        _require_strings(batch.schema.field("text").type, shard)
        values = batch.column(0).cast(pa.large_binary()).to_pylist()
        yield [_row(number + offset, value) for offset, value in enumerate(values)]
        number += len(values)


def read_documents(shards: Iterable[Path]) -> Iterator[str]:
    """The documents of `shards`, "" for a null. Raises UserError for a shard or a row that cannot be read."""
    for shard in shards:
        for row in chain.from_iterable(read_texts(shard)):
            if row.fault:
                raise UserError(f"{shard} row {row.number} is {row.fault}", fix="remove the row, or mend its encoding")
            yield row.text or ""


def row_groups(shard: Path) -> list[int]:
    """Rows in each row group of a shard. Raises UserError like `read_texts`."""
    with _opened(shard) as table:
        _require_columns(table, shard, ["text"])
        _require_strings(table.schema_arrow.field("text").type, shard)
        return [table.metadata.row_group(group).num_rows for group in range(table.num_row_groups)]


def column_names(shard: Path) -> list[str]:
    """What columns a shard has. Raises UserError when it cannot be read."""
    with _opened(shard) as table:
        return table.schema_arrow.names


def value_type(shard: Path, column: str) -> np.dtype:
    """The type of the numbers in a column of lists. Raises UserError when the shard cannot be read, or has no such."""
    with _opened(shard) as table:
        _require_columns(table, shard, [column])
        return np.dtype(table.schema_arrow.field(column).type.value_type.to_pandas_dtype())


@contextmanager
def _opened(shard: Path) -> Iterator[pq.ParquetFile]:
    try:
        with pq.ParquetFile(shard) as table:
            yield table
    except (pa.ArrowException, OSError) as error:
        raise UserError(
            f"{shard} cannot be read: {first_line(error)}",
            fix="the shard is damaged or gone; run `regraft verify`, and make the dataset again",
        ) from None


def _require_columns(table: pq.ParquetFile, shard: Path, columns: Sequence[str]) -> None:
    names = table.schema_arrow.names
    missing = [name for name in columns if name not in names]
    if missing:
        raise UserError(
            f"{shard} has no column {missing[0]!r}",
            fix=f"name one that is there, or give another dataset; found {listing(names)}",
        )


def _require_strings(kind: pa.DataType, shard: Path) -> None:
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        raise UserError(
            f"{shard} has {kind} in the column 'text', expected strings", fix="make the dataset with source.dataset"
        )


def _row(number: int, value: bytes | None) -> Row:
    if value is None:
        return Row(number, None)
    try:
        text = value.decode()
    except UnicodeDecodeError as error:
        return Row(number, None, f"not UTF-8: {error}")
    fault = fault_of(text)
    return Row(number, None if fault else text, fault)
