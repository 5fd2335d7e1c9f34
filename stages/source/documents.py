"""Reading documents out of files and hub datasets, one at a time; what is wrong with one is told with file and line.

A record that is no text comes as a `Document` with a `fault`, so that whoever reads may stop there or count it and go
on. What makes a whole source unreadable, such as a field that is not there, is raised.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final, cast

import pyarrow as pa
import pyarrow.parquet as pq

from stages.data.reading import fault_of
from stages.errors import UserError
from stages.source.files import GZIP, kind_of
from stages.source.hub import endpoint, refused, require_pinned, transport_errors, unreachable
from stages.source.licence import declared_licence
from stages.source.locate import HubReference, listing, nearest


@dataclass(frozen=True, slots=True)
class Document:
    """One record: its text, None where the field is null, or the `fault` for which it has none."""

    place: str
    """Where in its file it is, as `:7` or ` row 7`; "" when it is the whole file."""
    text: str | None
    fault: str = ""
    """What is wrong with it, to be read after its place."""
    fix: str = ""


def read_file(file: Path, field: str) -> Iterator[Document]:
    """The documents of `file`, by its kind. Raises UserError when the file is gone or has no such field."""
    read = READERS.get(kind_of(file.name), _read_txt)
    try:
        yield from read(file, field) if file.suffix != GZIP else _unpacked(read(file, field))
    except FileNotFoundError:
        raise UserError(
            f"{file} is gone since the run began", fix="put it back; files may not change while a run reads them"
        ) from None


def _unpacked(documents: Iterator[Document]) -> Iterator[Document]:
    """`documents`, and where their file can be unpacked no further, that as a fault."""
    count = 0
    try:
        for document in documents:
            yield document
            count += 1
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        fault = f"is not gzip that can be read after {count} documents: {error}"
        yield Document("", None, fault, "the file is damaged or cut off; fetch it again")


def _open(file: Path) -> IO[bytes]:
    """`file` for reading, unpacked."""
    return cast("IO[bytes]", gzip.open(file)) if file.suffix == GZIP else file.open("rb")


def read_hub(reference: HubReference, config: str | None, split: str, field: str) -> Iterator[Document]:
    """The documents of a hub dataset at its revision, streamed: only what is read is downloaded."""
    from datasets import load_dataset
    from datasets.exceptions import DatasetNotFoundError
    from huggingface_hub.errors import HfHubHTTPError

    require_pinned(reference, "dataset")
    try:
        rows = load_dataset(reference.repository, config, split=split, revision=reference.revision, streaming=True)
        for number, row in enumerate(rows):
            yield _document(row, field, f" row {number}")
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
    return declared_licence(card.to_dict()) if card else ""


def _read_jsonl(file: Path, field: str) -> Iterator[Document]:
    with _open(file) as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                record = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
            except UnicodeDecodeError as error:
                yield Document(f":{number}", None, f"is not UTF-8: {error}", "convert it, for instance with iconv")
            except ValueError as error:
                fix = "mend the line, or remove it; the file may be cut off"
                yield Document(f":{number}", None, f"is not JSON: {error}", fix)
            else:
                yield _document(record, field, f":{number}")


def _read_json(file: Path, field: str) -> Iterator[Document]:
    """A list of records or, as corpora have it under this name too, a record a line."""
    with _open(file) as lines:
        first = lines.readline()
        if _is_record(first):
            yield from _read_jsonl(file, field)
            return
        content = first + lines.read()
    try:
        records = json.loads(content)
    except ValueError as error:
        yield Document("", None, f"is not JSON: {error}", "it holds a list of records, or a record a line")
        return
    if not isinstance(records, list):
        yield Document("", None, f"holds a {type(records).__name__}, expected a list of records", "write it as .jsonl")
        return
    for number, record in enumerate(records):
        yield _document(record, field, f" record {number}")


def _is_record(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


def _read_parquet(file: Path, field: str) -> Iterator[Document]:
    number, total = 0, "?"
    try:
        with pq.ParquetFile(file) as table:
            total = str(table.metadata.num_rows)
            if field not in table.schema_arrow.names:
                raise _no_field(field, table.schema_arrow.names, str(file))
            for group in range(table.num_row_groups):
                for batch in table.iter_batches(row_groups=[group], columns=[field]):
                    for value in _plain(batch.column(0)):
                        yield _parquet_document(value, field, f" row {number}")
                        number += 1
    except FileNotFoundError:
        raise
    except (pa.ArrowException, OSError) as error:
        told = str(error).strip().splitlines()[0]
        fault = f"is not parquet that can be read from row {number} of {total} on: {told}"
        yield Document("", None, fault, "the file is damaged or cut off; fetch it again")


def _plain(column: pa.Array) -> list[Any]:
    """The values of a column; those of strings as bytes, since nothing has checked that they are UTF-8."""
    is_text = pa.types.is_string(column.type) or pa.types.is_large_string(column.type)
    return (column.cast(pa.large_binary()) if is_text else column).to_pylist()


def _parquet_document(value: Any, field: str, place: str) -> Document:
    try:
        value = value.decode() if isinstance(value, bytes) else value
    except UnicodeDecodeError as error:
        return Document(place, None, f"is not UTF-8: {error}", "convert it, for instance with iconv")
    return _document({field: value}, field, place)


def _read_csv(file: Path, field: str) -> Iterator[Document]:
    csv.field_size_limit(sys.maxsize)
    with io.TextIOWrapper(_open(file), encoding="utf-8-sig", errors="surrogateescape", newline="") as lines:
        reader = csv.DictReader(lines)
        if field not in (reader.fieldnames or []):
            raise _no_field(field, list(reader.fieldnames or []), str(file))
        for record in reader:
            yield _document(record, field, f":{reader.line_num}")


def _read_txt(file: Path, field: str) -> Iterator[Document]:
    del field
    try:
        with _open(file) as content:
            yield _document({"text": content.read().decode("utf-8-sig")}, "text", "")
    except UnicodeDecodeError as error:
        yield Document("", None, f"is not UTF-8: {error}", "convert it, for instance with iconv")


READERS: Final[Mapping[str, Callable[[Path, str], Iterator[Document]]]] = {
    ".jsonl": _read_jsonl,
    ".json": _read_json,
    ".parquet": _read_parquet,
    ".csv": _read_csv,
}
"""How files are read; one of any other kind is one document."""


def _document(record: Any, field: str, place: str) -> Document:
    if not isinstance(record, dict):
        return Document(place, None, f"holds a {type(record).__name__}, expected an object with fields")
    if field not in record:
        error = _no_field(field, [str(name) for name in record], "")
        return Document(place, None, error.message.strip(), error.fix)
    value = record[field]
    if value is None:
        return Document(place, None)
    if not isinstance(value, str):
        fix = f"choose another text_field of {listing(list(record))}"
        return Document(place, None, f"holds a {type(value).__name__} in field {field!r}, expected text", fix)
    fault = fault_of(value)
    if fault:
        return Document(place, None, f"is {fault}", "remove the record, or convert its encoding")
    return Document(place, value)


def _no_field(field: str, found: list[str], where: str) -> UserError:
    return UserError(
        f"{where} has no field {field!r}{nearest(field, found)}",
        fix=f"set text_field to one of {listing(found, limit=30)}",
    )
