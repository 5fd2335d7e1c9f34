"""`source.dataset`: bring documents into the pipeline from packages, a hub, files or buckets, as a `text` dataset."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Final, Literal, Self

from pydantic import Field

from stages.artifacts import Dataset, DatasetCard, Report, write_report
from stages.errors import UserError
from stages.source.files import GZIP, dataset_files, kind_of, of_one_kind
from stages.source.generated import GENERATED_TEXT, generated_text, is_generated
from stages.source.licence import card_licence, reference_licence
from stages.source.locate import HubReference, hub_reference
from stages.source.remote import RemoteFile, remote_files
from stages.stage import EXECUTION, Context, Output, Parameters, Source, Stage

if TYPE_CHECKING:
    from stages.source.documents import Document

SHOWN_FAULTS: Final = 20
"""Bad rows that the report names."""
BATCH_DOCUMENTS: Final = 1000
Origin = HubReference | list[Path] | list[RemoteFile] | str
"""A hub dataset, files here or elsewhere, or the name of what is generated."""


class SourceDatasetParams(Parameters):
    """Which documents, and which of them to keep."""

    dataset: Annotated[str, EXECUTION]
    """`package:NAME/path/in/it` (a file shipped in an installed package), `hub:ORG/NAME@REVISION` (a commit or a tag),
    a local file, directory or glob, which count by their content, a URL such as `s3://BUCKET/data/*.parquet`, whose
    files count by their ETag, or `generated:text`, documents to try a pipeline with. .jsonl, .json, .parquet and .csv
    files hold a document a record; .txt, .md and source code such as .py are a document a file. All but .parquet may
    be compressed, as .jsonl.gz."""
    text_field: str = "text"
    """Field or column that holds the text, where files have fields."""
    config: str | None = None
    """Configuration of a hub dataset that has several."""
    split: str | None = None
    """Split of a hub dataset; `train` without one."""
    limit: Annotated[int, Field(ge=1)] | None = None
    """Documents to keep at most, from the front."""
    deduplicate: bool = True
    """Whether to drop documents that repeat an earlier one exactly."""
    on_bad_row: Literal["error", "skip"] = "error"
    """What to do with a record that is no text (not JSON, another encoding, binary, no such field): stop and name it,
    or count and report it. A file that is gone always stops."""

    def smoke(self) -> Self:
        """Generated documents."""
        return self.replaced(dataset=GENERATED_TEXT, config=None, split=None)


@dataclass
class Counts:
    """What happened to the documents read."""

    read: int = 0
    empty: int = 0
    duplicates: int = 0
    bad: int = 0
    kept: int = 0
    num_bytes: int = 0
    faults: list[str] = field(default_factory=list)
    """The first bad rows: file, place and what is wrong."""


class SourceDataset(Stage):
    """Read documents from a package, a hub, local files or a bucket into a `text` dataset, in the order found.

    Empty documents are dropped, and exact repetitions as well unless told otherwise. All are counted: those read are
    those kept, empty, repeated and bad.
    """

    Params = SourceDatasetParams
    outputs: ClassVar[Mapping[str, Output]] = {"dataset": Output(Dataset, schema="text"), "report": Output(Report)}
    metrics = ("documents", "bytes", "documents_read", "duplicates", "empty", "bad_rows")
    params: SourceDatasetParams

    def sources(self) -> Mapping[str, Source]:
        """Every file that will be read (one elsewhere with its version), or the hub reference as written.

        How a file here is read is part of its name, since it counts by its content.
        """
        origin = self._origin()
        if not isinstance(origin, list):
            return {"dataset": str(origin)}
        return dict(_source(f"file-{number:05d}", file) for number, file in enumerate(origin))

    def preflight(self) -> None:
        """Check that the files are there, and that hub parameters come with a hub dataset."""
        if not isinstance(self._origin(), HubReference):
            for name in ("config", "split"):
                if getattr(self.params, name) is not None:
                    raise UserError(
                        f"{name}: {getattr(self.params, name)!r} is for hub datasets, {self.params.dataset!r} is none",
                        fix=f"remove {name}, and name the files to read in dataset",
                    )

    def run(self, context: Context) -> None:
        """Read every document once and write those kept."""
        from stages.data.shards import TEXT, ShardWriter

        out, counts = context.output("dataset"), Counts()
        batch: list[str] = []
        with ShardWriter(out, TEXT) as shards:
            for text in self._kept(counts, context.scratch / "fetched"):
                batch.append(text)
                if len(batch) == BATCH_DOCUMENTS:
                    shards.write_texts(batch)
                    batch = []
                    context.progress(counts.kept, self.params.limit or 0, "documents")
            if batch:
                shards.write_texts(batch)
        self._finish(context, counts)

    def _kept(self, counts: Counts, folder: Path) -> Iterator[str]:
        seen: set[bytes] = set()
        for where, document in self._documents(folder):
            counts.read += 1
            if document.fault:
                self._note(counts, where, document)
                continue
            text = document.text
            if text is None or not text.strip():
                counts.empty += 1
                continue
            digest = hashlib.blake2b(text.encode(), digest_size=16).digest() if self.params.deduplicate else b""
            if digest and digest in seen:
                counts.duplicates += 1
                continue
            seen.add(digest)
            counts.kept += 1
            counts.num_bytes += len(text.encode())
            yield text
            if counts.kept == self.params.limit:
                return

    def _note(self, counts: Counts, where: Path | str, document: Document) -> None:
        """Count a bad row, or raise UserError for it."""
        if self.params.on_bad_row == "error":
            raise UserError(
                f"{where}{document.place} {document.fault}",
                fix=document.fix or "mend the record, or set on_bad_row: skip to count such records and go on",
            )
        counts.bad += 1
        if len(counts.faults) < SHOWN_FAULTS:
            name = where.name if isinstance(where, Path) else where
            counts.faults.append(f"{name}{document.place} {document.fault}".replace(f"{where}", name))

    def _documents(self, folder: Path) -> Iterator[tuple[Path | str, Document]]:
        """Every document with the file, or whatever else, that it is in."""
        from stages.source.documents import Document, read_hub

        origin = self._origin()
        if isinstance(origin, str):
            yield from ((origin, Document(f" {number}", text)) for number, text in enumerate(generated_text()))
            return
        if isinstance(origin, HubReference):
            rows = read_hub(origin, self.params.config, self.params.split or "train", self.params.text_field)
            yield from ((str(origin), document) for document in rows)
            return
        for file in origin:
            here = file.fetch(folder) if isinstance(file, RemoteFile) else file
            yield from ((file.url if isinstance(file, RemoteFile) else file, d) for d in self._read(here))
            if isinstance(file, RemoteFile):
                here.unlink()

    def _read(self, file: Path) -> Iterator[Document]:
        from stages.source.documents import read_file

        return read_file(file, self.params.text_field)

    def _finish(self, context: Context, counts: Counts) -> None:
        if counts.kept == 0:
            raise UserError(
                f"{self.params.dataset} gives no documents: {counts.read} read, {counts.empty} of them empty"
                + (f", {counts.bad} bad, the first: {counts.faults[0]}" if counts.bad else ""),
                fix=f"check the files, and that text_field: {self.params.text_field!r} holds the text",
            )
        DatasetCard(
            schema="text",
            num_rows=counts.kept,
            num_bytes=counts.num_bytes,
            licence=self._licence(),
            source=self._source_name(),
        ).write(context.output("dataset"))
        context.metrics(
            documents=counts.kept,
            bytes=counts.num_bytes,
            documents_read=counts.read,
            duplicates=counts.duplicates,
            empty=counts.empty,
            bad_rows=counts.bad,
        )
        if counts.bad:
            context.say(f"{counts.bad} of {counts.read} records are no text and were skipped: {counts.faults[0]}")
        details = {**self.params.identity(), "bad_rows": counts.faults}
        write_report(context.output("report"), "Documents read", context.results, details)

    def _origin(self) -> Origin:
        text = self.params.dataset
        if "://" in text:
            return of_one_kind(remote_files(text), text)
        if is_generated(text, GENERATED_TEXT):
            return text
        return hub_reference(text) if text.startswith("hub:") else dataset_files(text)

    def _licence(self) -> str:
        from stages.source.documents import hub_licence

        origin = self._origin()
        if isinstance(origin, HubReference):
            return hub_licence(origin)
        if isinstance(origin, str):
            return "CC0-1.0"
        first = origin[0]
        if isinstance(first, RemoteFile):
            return ""
        return card_licence(first.parent) or reference_licence(self.params.dataset)

    def _source_name(self) -> str:
        pinned = self.params.dataset.startswith(("hub:", "package:", "generated:")) or "://" in self.params.dataset
        return self.params.dataset if pinned else Path(self.params.dataset).name


def _source(name: str, file: Path | RemoteFile) -> tuple[str, Source]:
    if isinstance(file, RemoteFile):
        return name, f"{file.url}@{file.version}"
    return f"{name}{kind_of(file.name)}{GZIP if file.suffix == GZIP else ''}", file
