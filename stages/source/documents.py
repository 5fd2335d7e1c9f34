"""Reading documents out of files and hub datasets, one at a time, with errors that name file, line and field."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from stages.errors import UserError
from stages.source.hub import endpoint, refused, require_pinned, transport_errors, unreachable
from stages.source.locate import HubReference, listing, nearest

Document = str | None
"""The text of one record; None where the field is null."""


def read_file(file: Path, field: str) -> Iterator[Document]:
    """The documents of `file`, by its suffix. Raises UserError naming the file, and the line where it has lines."""
    try:
        yield from READERS[file.suffix](file, field)
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is not UTF-8: {error}", fix="convert it, for instance with iconv") from None


def read_hub(reference: HubReference, config: str | None, split: str, field: str) -> Iterator[Document]:
    """The documents of a hub dataset at its revision, streamed: only what is read is downloaded."""
    from datasets import load_dataset
    from datasets.exceptions import DatasetNotFoundError
    from huggingface_hub.errors import HfHubHTTPError

    require_pinned(reference, "dataset")
    try:
        rows = load_dataset(reference.repository, config, split=split, revision=reference.revision, streaming=True)
        for number, row in enumerate(rows):
            yield _text(row, field, f"{reference} row {number}")
    except (DatasetNotFoundError, HfHubHTTPError) as error:
        raise refused(reference, error) from error
    except transport_errors() as error:
        raise unreachable(reference, error) from error
    except (ValueError, FileNotFoundError) as error:
        raise UserError(f"{reference}: {error}", fix="check `config` and `split`") from error


def hub_licence(reference: HubReference) -> str:
    """The licence on the card of a hub dataset, or ""."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    try:
        card = HfApi(endpoint=endpoint()).dataset_info(reference.repository, revision=reference.revision).card_data
    except HfHubHTTPError as error:
        raise refused(reference, error) from error
    except transport_errors() as error:
        raise unreachable(reference, error) from error
    declared = card.get("license") if card else None
    return ", ".join(declared) if isinstance(declared, list) else declared or ""


def _read_jsonl(file: Path, field: str) -> Iterator[Document]:
    with file.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except ValueError as error:
                raise UserError(
                    f"{file}:{number} is not JSON: {error}", fix="mend the line, or remove it; the file may be cut off"
                ) from None
            yield _text(record, field, f"{file}:{number}")


def _read_json(file: Path, field: str) -> Iterator[Document]:
    try:
        records = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{file} is not JSON: {error}", fix="name it .jsonl if it holds a record a line") from None
    if not isinstance(records, list):
        raise UserError(
            f"{file} holds a {type(records).__name__}, expected a list of records", fix="write it as .jsonl"
        )
    for number, record in enumerate(records):
        yield _text(record, field, f"{file} record {number}")


def _read_parquet(file: Path, field: str) -> Iterator[Document]:
    try:
        table = pq.ParquetFile(file)
    except pa.ArrowInvalid as error:
        raise UserError(
            f"{file} is not parquet: {error}", fix="the file is damaged or cut off; fetch it again"
        ) from None
    if field not in table.schema_arrow.names:
        raise _no_field(field, table.schema_arrow.names, str(file))
    for batch in table.iter_batches(columns=[field]):
        for number, value in enumerate(batch.column(0).to_pylist()):
            yield _text({field: value}, field, f"{file} row {number}")


def _read_csv(file: Path, field: str) -> Iterator[Document]:
    csv.field_size_limit(sys.maxsize)
    with file.open(encoding="utf-8", newline="") as lines:
        reader = csv.DictReader(lines)
        for record in reader:
            yield _text(record, field, f"{file}:{reader.line_num}")


def _read_txt(file: Path, field: str) -> Iterator[Document]:
    del field
    yield file.read_text(encoding="utf-8")


READERS: Final[Mapping[str, Callable[[Path, str], Iterator[Document]]]] = {
    ".jsonl": _read_jsonl,
    ".json": _read_json,
    ".parquet": _read_parquet,
    ".csv": _read_csv,
    ".txt": _read_txt,
}


def _text(record: Any, field: str, where: str) -> Document:
    if not isinstance(record, dict):
        raise UserError(f"{where} holds a {type(record).__name__}, expected an object with fields")
    if field not in record:
        raise _no_field(field, [str(name) for name in record], where)
    value = record[field]
    if value is not None and not isinstance(value, str):
        raise UserError(
            f"{where}: field {field!r} holds a {type(value).__name__}, expected text",
            fix=f"choose another text_field of {listing(list(record))}",
        )
    return value


def _no_field(field: str, found: list[str], where: str) -> UserError:
    return UserError(
        f"{where} has no field {field!r}{nearest(field, found)}",
        fix=f"set text_field to one of {listing(found, limit=30)}",
    )
