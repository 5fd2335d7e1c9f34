"""Documents out of records, or whole files; what is wrong with one is told with file and line."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from stages.data.reading import fault_of
from stages.errors import listing
from stages.source.files import kind_of
from stages.source.hub import endpoint, refused, transport_errors, unreachable
from stages.source.licence import declared_licence
from stages.source.locate import HubReference
from stages.source.records import CONVERT, READERS, Fields, Record, hub_records, open_safely, opened, read_records


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
    """The documents of `file`, by its kind. Raises UserError when the file is gone or has no such column."""
    if kind_of(file.name) not in READERS:
        return open_safely(file, _whole(file), lambda fault, fix: Document("", None, fault, fix))
    return (_document(record, field) for record in read_records(file, Fields(field)))


def hub_documents(reference: HubReference, config: str | None, split: str, field: str) -> Iterator[Document]:
    """The documents of a hub dataset at its revision, streamed: only what is read is downloaded."""
    return (_document(record, field) for record in hub_records(reference, config, split, Fields(field)))


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


def _whole(file: Path) -> Iterator[Document]:
    """A file that is one document."""
    try:
        with opened(file) as content:
            yield _document(Record("", {"text": content.read().decode("utf-8-sig")}), "text")
    except UnicodeDecodeError as error:
        yield Document("", None, f"is not UTF-8: {error}", CONVERT)


def _document(record: Record, field: str) -> Document:
    place = record.place
    if record.fault:
        return Document(place, None, record.fault, record.fix)
    value = record.fields[field]
    if value is None:
        return Document(place, None)
    if not isinstance(value, str):
        fix = f"choose another text_field of {listing(list(record.fields))}"
        return Document(place, None, f"holds a {type(value).__name__} in field {field!r}, expected text", fix)
    fault = fault_of(value)
    if fault:
        return Document(place, None, f"is {fault}", "remove the record, or convert its encoding")
    return Document(place, value)
