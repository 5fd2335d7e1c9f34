"""Reading the documents of `text` shards, row by row, with what is wrong with a row told apart from what it says."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.parquet as pq

from stages.errors import UserError
from stages.source.locate import listing

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


def read_texts(shard: Path, row_group: int | None = None, first_row: int = 0) -> Iterator[list[Row]]:
    """The rows of a shard, or of one of its row groups that starts at `first_row`, in batches.

    Raises UserError naming the shard and the row when it cannot be read any further.
    """
    number = first_row
    try:
        with pq.ParquetFile(shard) as table:
            _require_text(table, shard)
            groups = range(table.num_row_groups) if row_group is None else [row_group]
            for batch in table.iter_batches(BATCH_DOCUMENTS, row_groups=groups, columns=["text"]):
                values = batch.column(0).cast(pa.large_binary()).to_pylist()
                yield [_row(number + offset, value) for offset, value in enumerate(values)]
                number += len(values)
    except FileNotFoundError:
        raise UserError(
            f"{shard} is gone at row {number}, although the dataset had it",
            fix="something removed files of the store; run `regraft verify`, and run the pipeline again",
        ) from None
    except (pa.ArrowException, OSError) as error:
        raise UserError(
            f"{shard} cannot be read at row {number}: {str(error).strip().splitlines()[0]}",
            fix="the shard is damaged; run `regraft verify`, and make the dataset again",
        ) from None


def read_documents(shards: Iterable[Path]) -> Iterator[str]:
    """The documents of `shards`, "" for a null. Raises UserError for a shard or a row that cannot be read."""
    for shard in shards:
        for row in chain.from_iterable(read_texts(shard)):
            if row.fault:
                raise UserError(f"{shard} row {row.number} is {row.fault}", fix="remove the row, or mend its encoding")
            yield row.text or ""


def row_groups(shard: Path) -> list[int]:
    """Rows in each row group of a shard. Raises UserError like `read_texts`."""
    try:
        with pq.ParquetFile(shard) as table:
            _require_text(table, shard)
            return [table.metadata.row_group(group).num_rows for group in range(table.num_row_groups)]
    except (pa.ArrowException, OSError) as error:
        raise UserError(
            f"{shard} cannot be read: {str(error).strip().splitlines()[0]}",
            fix="the shard is damaged or gone; run `regraft verify`, and make the dataset again",
        ) from None


def _require_text(table: pq.ParquetFile, shard: Path) -> None:
    fields = table.schema_arrow
    kind = fields.field("text").type if "text" in fields.names else None
    if kind is None or not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        raise UserError(
            f"{shard} has {'no column' if kind is None else f'{kind} in the column'} 'text', expected strings",
            fix=f"a text dataset has a column `text`; found {listing(fields.names)}",
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
