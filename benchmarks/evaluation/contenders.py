"""The two sides of the benchmark."""

from __future__ import annotations

import io
import logging
from contextlib import redirect_stderr
from pathlib import Path
from typing import Protocol

import pyarrow.parquet as pq
import torch

from stages.artifacts import Dataset, Model
from stages.evaluate.likelihood import likelihood
from stages.evaluate.loading import load_for_evaluation
from stages.evaluate.text_windows import SEPARATOR, text_windows


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
