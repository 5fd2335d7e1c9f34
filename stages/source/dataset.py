"""`source.dataset`: bring documents into the pipeline from packages, a hub, files or buckets, as a `text` dataset."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Final, Self

from stages.artifacts import Dataset, DatasetCard, Report, write_report
from stages.errors import UserError
from stages.source.generated import GENERATED_TEXT, generated_text
from stages.source.locate import HubReference
from stages.source.origin import BadRows, Origin, OriginParameters, ReadsOrigin
from stages.stage import EXECUTION, Context, Output

if TYPE_CHECKING:
    from stages.source.documents import Document

BATCH_DOCUMENTS: Final = 1000


class SourceDatasetParams(OriginParameters):
    """Which documents, and which of them to keep."""

    dataset: Annotated[str, EXECUTION]
    """`package:NAME/path/in/it` (a file shipped in an installed package), `hub:ORG/NAME@REVISION` (a commit or a tag),
    a local file, directory or glob, which count by their content, a URL such as `s3://BUCKET/data/*.parquet`, whose
    files count by their ETag or what else their storage tells of a version, or `generated:text`, documents to try a
    pipeline with. .jsonl, .json, .parquet and .csv files hold a document a record; .txt, .md and source code such as
    .py are a document a file. All but .parquet may be compressed, as .jsonl.gz."""
    text_field: str = "text"
    """Field or column that holds the text, where files have fields."""
    deduplicate: bool = True
    """Whether to drop documents that repeat an earlier one exactly."""

    def smoke(self) -> Self:
        """Generated documents."""
        return self.replaced(dataset=GENERATED_TEXT, config=None, split=None)


@dataclass
class Counts:
    """What happened to the documents read."""

    bad: BadRows
    read: int = 0
    empty: int = 0
    duplicates: int = 0
    kept: int = 0
    num_bytes: int = 0
    seen: set[bytes] = field(default_factory=set)
    """Digests of those kept, where repetitions go."""


class SourceDataset(ReadsOrigin):
    """Read documents from a package, a hub, local files or a bucket into a `text` dataset, in the order found.

    Empty documents are dropped, and exact repetitions as well unless told otherwise. All are counted: those read are
    those kept, empty, repeated and bad.
    """

    Params = SourceDatasetParams
    outputs: ClassVar[Mapping[str, Output]] = {"dataset": Output(Dataset, schema="text"), "report": Output(Report)}
    metrics = ("documents", "bytes", "documents_read", "duplicates", "empty", "bad_rows")
    generated = GENERATED_TEXT
    params: SourceDatasetParams

    def run(self, context: Context) -> None:
        """Read every document once and write those kept."""
        from stages.data.shards import TEXT, ShardWriter

        origin, counts = self.origin(), Counts(BadRows(self.params.on_bad_row == "skip"))
        licence, out = origin.licence(), context.output("dataset")
        batch: list[str] = []
        with ShardWriter(out, TEXT) as shards:
            for text in self._kept(origin, counts, context.scratch / "fetched"):
                batch.append(text)
                if len(batch) == BATCH_DOCUMENTS:
                    shards.write_texts(batch)
                    batch = []
                    context.progress(counts.kept, self.params.limit or 0, "documents")
            if batch:
                shards.write_texts(batch)
        self._finish(context, counts, origin, licence)

    def _kept(self, origin: Origin, counts: Counts, folder: Path) -> Iterator[str]:
        for where, document in self._documents(origin, folder):
            counts.read += 1
            if document.fault:
                counts.bad.note(where, document.place, document.fault, document.fix)
            elif (text := document.text) is None or not text.strip():
                counts.empty += 1
            elif self.params.deduplicate and self._repeats(text, counts):
                counts.duplicates += 1
            else:
                counts.kept += 1
                counts.num_bytes += len(text.encode())
                yield text
                if counts.kept == self.params.limit:
                    return

    def _repeats(self, text: str, counts: Counts) -> bool:
        digest = hashlib.blake2b(text.encode(), digest_size=16).digest()
        repeats = digest in counts.seen
        counts.seen.add(digest)
        return repeats

    def _documents(self, origin: Origin, folder: Path) -> Iterator[tuple[Path | str, Document]]:
        """Every document with the file, or whatever else, that it is in."""
        from stages.source.documents import Document, hub_documents, read_file

        if origin.found is None:
            yield from ((origin.text, Document(f" {number}", text)) for number, text in enumerate(generated_text()))
        elif isinstance(origin.found, HubReference):
            config, split = self.params.config, self.params.split or "train"
            rows = hub_documents(origin.found, config, split, self.params.text_field)
            yield from ((origin.text, document) for document in rows)
        for where, file in origin.files(folder):
            yield from ((where, document) for document in read_file(file, self.params.text_field))

    def _finish(self, context: Context, counts: Counts, origin: Origin, licence: str) -> None:
        bad = counts.bad
        if counts.kept == 0:
            raise UserError(
                f"{self.params.dataset} gives no documents: {counts.read} read, {counts.empty} of them empty"
                + (f", {bad.count} bad, the first: {bad.shown[0]}" if bad.count else ""),
                fix=f"check the files, and that text_field: {self.params.text_field!r} holds the text",
            )
        DatasetCard(
            schema="text",
            num_rows=counts.kept,
            num_bytes=counts.num_bytes,
            licence=licence,
            source=origin.name,
        ).write(context.output("dataset"))
        context.metrics(
            documents=counts.kept,
            bytes=counts.num_bytes,
            documents_read=counts.read,
            duplicates=counts.duplicates,
            empty=counts.empty,
            bad_rows=bad.count,
        )
        if bad.count:
            context.say(f"{bad.count} of {counts.read} records are no text and were skipped: {bad.shown[0]}")
        details = {**self.params.identity(), "bad_rows": bad.shown}
        write_report(context.output("report"), "Documents read", context.results, details)
