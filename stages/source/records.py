"""Reading records out of files and hub datasets, one at a time; what is wrong with one is told with file and line.

A record that cannot be read comes as a `Record` with a `fault`, so that whoever reads may stop there or count it and go
on. What makes a whole source unreadable, such as a column that is not there, is raised.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final, TypeVar, cast

import pyarrow as pa
import pyarrow.parquet as pq

from stages.errors import UserError, first_line, listing
from stages.source.files import GZIP, kind_of
from stages.source.hub import refused, require_pinned, transport_errors, unreachable
from stages.source.locate import HubReference, nearest

CONVERT: Final = "convert it, for instance with iconv"
Found = TypeVar("Found")


@dataclass(frozen=True, slots=True)
class Record:
    """One record: its fields, or the `fault` for which it has none."""

    place: str
    """Where in its file it is, as `:7` or ` row 7`; "" when it is the whole file."""
    fields: Mapping[str, Any]
    fault: str = ""
    """What is wrong with it, to be read after its place."""
    fix: str = ""


@dataclass(frozen=True)
class Fields:
    """Which fields are wanted of each record."""

    needed: str
    """Without which a record is none."""
    optional: tuple[str, ...] = ()
    parameter: str = "text_field"
    """What sets `needed`."""

    def missing(self, found: Sequence[str], where: str = "") -> UserError:
        """What to tell where there is no such field."""
        return UserError(
            f"{where} has no field {self.needed!r}{nearest(self.needed, found)}",
            fix=f"set {self.parameter} to one of {listing(list(found), limit=30)}",
        )


def read_records(file: Path, fields: Fields) -> Iterator[Record]:
    """The records of `file`, by its kind. Raises UserError when the file is gone or has no column of that name."""
    return open_safely(file, READERS[kind_of(file.name)](file, fields), _damaged)


def open_safely(file: Path, found: Iterator[Found], damaged: Callable[[str, str], Found]) -> Iterator[Found]:
    """What is `found` in `file`, and where it can be unpacked no further, that by `damaged(fault, fix)`.

    Raises UserError when the file is gone.
    """
    count = 0
    try:
        for each in found:
            yield each
            count += 1
    except FileNotFoundError:
        raise UserError(
            f"{file} is gone since the run began", fix="put it back; files may not change while a run reads them"
        ) from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        fault = f"is not gzip that can be read after {count} documents: {error}"
        yield damaged(fault, "the file is damaged or cut off; fetch it again")


def opened(file: Path) -> IO[bytes]:
    """`file` for reading, unpacked."""
    return cast("IO[bytes]", gzip.open(file)) if file.suffix == GZIP else file.open("rb")


def hub_records(reference: HubReference, config: str | None, split: str, fields: Fields) -> Iterator[Record]:
    """The records of a hub dataset at its revision, streamed: only what is read is downloaded."""
    from datasets import load_dataset
    from datasets.exceptions import DatasetNotFoundError
    from huggingface_hub.errors import HfHubHTTPError

    require_pinned(reference, "dataset")
    try:
        rows = load_dataset(reference.repository, config, split=split, revision=reference.revision, streaming=True)
        for number, row in enumerate(rows):
            yield _record(row, fields, f" row {number}")
    except (DatasetNotFoundError, HfHubHTTPError) as error:
        raise refused(reference, error) from error
    except transport_errors() as error:
        raise unreachable(reference, error) from error
    except (ValueError, FileNotFoundError) as error:
        raise UserError(f"{reference}: {error}", fix="check `config` and `split`") from error
    except RuntimeError as error:
        raise UserError(
            f"{reference} cannot be read: {first_line(error)}",
            fix="take a revision or a dataset of plain files (parquet, JSON, CSV): no code of a dataset is run",
        ) from error


def _damaged(fault: str, fix: str) -> Record:
    return Record("", {}, fault, fix)


def _read_jsonl(file: Path, fields: Fields) -> Iterator[Record]:
    with opened(file) as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                record = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
            except UnicodeDecodeError as error:
                yield Record(f":{number}", {}, f"is not UTF-8: {error}", CONVERT)
            except ValueError as error:
                fix = "mend the line, or remove it; the file may be cut off"
                yield Record(f":{number}", {}, f"is not JSON: {error}", fix)
            else:
                yield _record(record, fields, f":{number}")


def _read_json(file: Path, fields: Fields) -> Iterator[Record]:
    """A list of records or, as corpora have it under this name too, a record a line."""
    with opened(file) as lines:
        first = lines.readline()
        if _is_record(first):
            yield from _read_jsonl(file, fields)
            return
        content = first + lines.read()
    try:
        records = json.loads(content)
    except ValueError as error:
        # A list is written with a bracket first; of records a line, a bad one must not cost the others.
        if not content.lstrip().startswith(b"[") and any(map(_is_record, content.splitlines())):
            yield from _read_jsonl(file, fields)
            return
        yield _damaged(f"is not JSON: {error}", "it holds a list of records, or a record a line")
        return
    if not isinstance(records, list):
        yield _damaged(f"holds a {type(records).__name__}, expected a list of records", "write it as .jsonl")
        return
    for number, record in enumerate(records):
        yield _record(record, fields, f" record {number}")


def _is_record(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


def _read_parquet(file: Path, fields: Fields) -> Iterator[Record]:
    number, total = 0, "?"
    try:
        with pq.ParquetFile(file) as table:
            total, names = str(table.metadata.num_rows), table.schema_arrow.names
            if fields.needed not in names:
                raise fields.missing(names, str(file))
            wanted = [name for name in (fields.needed, *fields.optional) if name in names]
            for group in range(table.num_row_groups):
                for batch in table.iter_batches(row_groups=[group], columns=wanted):
                    for row in zip(*batch.columns, strict=True):
                        yield _parquet_record(batch.schema.names, row, f" row {number}")
                        number += 1
    except FileNotFoundError:
        raise
    except (pa.ArrowException, OSError) as error:
        fault = f"is not parquet that can be read from row {number} of {total} on: {first_line(error)}"
        yield _damaged(fault, "the file is damaged or cut off; fetch it again")


def _parquet_record(names: Sequence[str], row: Sequence[pa.Scalar], place: str) -> Record:
    try:
        return Record(place, {name: value.as_py() for name, value in zip(names, row, strict=True)})
    except UnicodeDecodeError as error:
        return Record(place, {}, f"is not UTF-8: {error}", CONVERT)


def _read_csv(file: Path, fields: Fields) -> Iterator[Record]:
    csv.field_size_limit(sys.maxsize)
    with io.TextIOWrapper(opened(file), encoding="utf-8-sig", errors="surrogateescape", newline="") as lines:
        reader = csv.DictReader(lines)
        if fields.needed not in (reader.fieldnames or []):
            raise fields.missing(list(reader.fieldnames or []), str(file))
        for record in reader:
            yield _record(record, fields, f":{reader.line_num}")


READERS: Final[Mapping[str, Callable[[Path, Fields], Iterator[Record]]]] = {
    ".jsonl": _read_jsonl,
    ".json": _read_json,
    ".parquet": _read_parquet,
    ".csv": _read_csv,
}
"""How files of each kind of records are read."""


def _record(record: Any, fields: Fields, place: str) -> Record:
    if not isinstance(record, dict):
        return Record(place, {}, f"holds a {type(record).__name__}, expected an object with fields")
    if fields.needed not in record:
        error = fields.missing([str(name) for name in record])
        return Record(place, {}, error.message.strip(), error.fix)
    return Record(place, record)
