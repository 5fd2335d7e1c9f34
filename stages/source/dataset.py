"""`source.dataset`: bring documents into the pipeline from packages, a hub or local files, as a `text` dataset."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Final, Self

from pydantic import Field

from stages.artifacts import Dataset, DatasetCard
from stages.errors import UserError
from stages.source.generated import GENERATED_TEXT, generated_text, is_generated
from stages.source.licence import card_licence, reference_licence
from stages.source.locate import HubReference, hub_reference, listing, locate
from stages.stage import EXECUTION, Context, Output, Parameters, Source, Stage

if TYPE_CHECKING:
    from stages.source.documents import Document

SUFFIXES: Final = frozenset({".jsonl", ".json", ".parquet", ".csv", ".txt"})
BATCH_DOCUMENTS: Final = 1000


class SourceDatasetParams(Parameters):
    """Which documents, and which of them to keep."""

    dataset: Annotated[str, EXECUTION]
    """`package:NAME/path/in/it` (a file shipped in an installed package), `hub:ORG/NAME@REVISION` (a commit or a tag),
    a local file, directory or glob (.jsonl, .json, .parquet, .csv, .txt), which count by their content, or
    `generated:text`, documents to try a pipeline with."""
    text_field: str = "text"
    """Field or column that holds the text. A .txt file is one document."""
    config: str | None = None
    """Configuration of a hub dataset that has several."""
    split: str | None = None
    """Split of a hub dataset; `train` without one."""
    limit: Annotated[int, Field(ge=1)] | None = None
    """Documents to keep at most, from the front."""
    deduplicate: bool = True
    """Whether to drop documents that repeat an earlier one exactly."""

    def smoke(self) -> Self:
        """Generated documents."""
        return self.replaced(dataset=GENERATED_TEXT, config=None, split=None)


@dataclass
class Counts:
    """What happened to the documents read."""

    read: int = 0
    empty: int = 0
    duplicates: int = 0
    kept: int = 0
    num_bytes: int = 0


class SourceDataset(Stage):
    """Read documents from an installed package, a hub or local files into a `text` dataset, in the order found.

    Empty documents are dropped, and exact repetitions as well unless told otherwise.
    """

    Params = SourceDatasetParams
    outputs: ClassVar[Mapping[str, Output]] = {"dataset": Output(Dataset, schema="text")}
    metrics = ("documents", "bytes", "duplicates", "empty")
    params: SourceDatasetParams

    def sources(self) -> Mapping[str, Source]:
        """Every file that will be read, or the hub reference as written."""
        origin = self._origin()
        if not isinstance(origin, list):
            return {"dataset": str(origin)}
        return {f"file-{number:05d}": file for number, file in enumerate(origin)}

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
            for text in self._kept(counts):
                batch.append(text)
                if len(batch) == BATCH_DOCUMENTS:
                    shards.write_texts(batch)
                    batch = []
                    context.progress(counts.kept, self.params.limit or 0, "documents")
            if batch:
                shards.write_texts(batch)
        self._finish(context, counts)

    def _kept(self, counts: Counts) -> Iterator[str]:
        seen: set[bytes] = set()
        for text in self._documents():
            counts.read += 1
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

    def _documents(self) -> Iterator[Document]:
        from stages.source.documents import read_file, read_hub

        origin = self._origin()
        if isinstance(origin, str):
            yield from generated_text()
            return
        if isinstance(origin, HubReference):
            yield from read_hub(origin, self.params.config, self.params.split or "train", self.params.text_field)
            return
        for file in origin:
            yield from read_file(file, self.params.text_field)

    def _finish(self, context: Context, counts: Counts) -> None:
        if counts.kept == 0:
            raise UserError(
                f"{self.params.dataset} gives no documents: {counts.read} read, {counts.empty} of them empty",
                fix=f"check the files, and that text_field: {self.params.text_field!r} holds the text",
            )
        DatasetCard(
            schema="text",
            num_rows=counts.kept,
            num_bytes=counts.num_bytes,
            licence=self._licence(),
            source=self._source_name(),
        ).write(context.output("dataset"))
        context.metrics(documents=counts.kept, bytes=counts.num_bytes, duplicates=counts.duplicates, empty=counts.empty)

    def _origin(self) -> HubReference | list[Path] | str:
        text = self.params.dataset
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
        return card_licence(origin[0].parent) or reference_licence(self.params.dataset)

    def _source_name(self) -> str:
        pinned = self.params.dataset.startswith(("hub:", "package:", "generated:"))
        return self.params.dataset if pinned else Path(self.params.dataset).name


def dataset_files(text: str) -> list[Path]:
    """The data files that a path, directory or glob names, sorted. Raises UserError for none, and for mixed kinds."""
    folder, pattern = _split_glob(text)
    path = locate(folder)
    if path.is_file():
        files = [path]
    elif pattern:
        files = sorted(file for file in path.glob(pattern) if file.is_file())
    else:
        files = sorted(file for file in path.rglob("*") if file.suffix in SUFFIXES)
    suffixes = sorted({file.suffix for file in files})
    if not files or not SUFFIXES.issuperset(suffixes):
        names = sorted(file.name for file in files or path.iterdir())
        raise UserError(
            f"{text!r} names no data file: found {listing(names)}", fix=f"readable are {', '.join(sorted(SUFFIXES))}"
        )
    if len(suffixes) > 1:
        raise UserError(
            f"{text!r} mixes {' and '.join(suffixes)} files",
            fix=f"choose with a glob: {folder.rstrip('/')}/*{suffixes[0]}",
        )
    return files


def _split_glob(text: str) -> tuple[str, str]:
    """`data/*/x.jsonl` as (`data`, `*/x.jsonl`); the second part is "" without wildcards."""
    parts = text.split("/")
    wild = next((index for index, part in enumerate(parts) if set(part) & set("*?[")), len(parts))
    return "/".join(parts[:wild]) or ("/" if text.startswith("/") else "."), "/".join(parts[wild:])
