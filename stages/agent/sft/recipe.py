"""What a worker does to fine-tune on trajectories: rows of conversations, a loss on the assistant's tokens, LoRA."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from grafts.loader import load_model, save_model
from stages.agent.sft.packing import Packed
from stages.artifacts import Dataset, Model
from stages.evaluate.distance import distance, evaluating
from stages.training.apart import require_apart
from stages.training.cross_entropy import IGNORED, cross_entropy
from stages.training.recipe import Batch, Loss, Recipe, Worker, columns_needed
from stages.training.windows import first_windows


@dataclass(frozen=True)
class Lora:
    """Low-rank adapters on every linear layer but the output's; they are merged at the end (arXiv 2106.09685)."""

    rank: int
    alpha: float
    seed: int


@dataclass
class FineTuning(Recipe):
    """Train `model` on packed rows in `rows`; at the end measure it on those in `validation`, if any.

    Its distance to the model that it began as is measured on the first windows of `heldout`, if any.
    """

    model: Model
    rows: Path
    validation: Path | None
    heldout: Dataset | None
    heldout_windows: int
    cache: Path
    """Where windows are decoded to."""
    template: str
    """The chat template that the rows were made with; it goes with the model."""
    lora: Lora | None
    measure_batch: int
    out: Path
    _worker: Worker | None = field(default=None, repr=False)
    _packed: Packed | None = field(default=None, repr=False)
    _held: Tensor | None = field(default=None, repr=False)
    """Held-out token ids [N, T]."""

    def prepare(self, worker: Worker) -> None:
        """Map the rows, and read the held-out windows."""
        self._worker, self._packed = worker, Packed.load(self.rows)
        if self.heldout is not None:
            self._held = first_windows(self.heldout, self.cache, self.heldout_windows)

    @property
    def worker(self) -> Worker:
        """Where this runs."""
        assert self._worker is not None, "the loop calls `prepare` first"
        return self._worker

    @property
    def packed(self) -> Packed:
        """The training data."""
        assert self._packed is not None, "the loop calls `prepare` first"
        return self._packed

    def build(self) -> nn.Module:
        """The model, with fresh adapters where they are asked for.

        Raises UserError where it would read on from one conversation of a row into the next.
        """
        model = load_model(self.model.path, dtype=self.worker.dtype)
        if self.packed.several:
            require_apart(model, fix="set packing: false, which gives each conversation a row")
        return with_lora(model, self.lora) if self.lora else model

    @property
    def num_samples(self) -> int:
        """Rows."""
        return len(self.packed.ids)

    @property
    def sample_tokens(self) -> int:
        """Tokens of a row."""
        return self.packed.ids.shape[1]

    def batch(self, indices: Sequence[int]) -> Batch:
        """Rows [B, T]."""
        return as_batch(self.packed, indices)

    def loss(self, model: nn.Module, batch: Batch) -> Loss:
        """Cross-entropy summed over the assistant's tokens."""
        logits_BTV, labels_BT = predict(model, batch)
        return Loss(cross_entropy(logits_BTV.flatten(0, 1), labels_BT.flatten()))

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Loss and accuracy on the rows for validation."""
        return self._measure(model)

    def finish(self, model: nn.Module) -> dict[str, float]:
        """Merge the adapters, save the model with its tokenizer and template, and measure it."""
        merged: Any = model.merge_and_unload() if self.lora else model  # pyrefly: ignore[not-callable]
        assert isinstance(merged, PreTrainedModel), f"expected a PreTrainedModel, got {type(merged).__name__}"
        save_model(merged, self.out, tokenizer_from=self.model.path, dtype=self.worker.stored)
        (self.out / "chat_template.jinja").write_text(self.template, encoding="utf-8")
        return {**self._measure(merged), **self._distance(merged)}

    def _distance(self, model: PreTrainedModel) -> dict[str, float]:
        if self._held is None:
            return {}
        parent = load_model(self.model.path, dtype=self.worker.dtype).to(self.worker.device)
        return distance(parent, model, self._held, batch_size=self.measure_batch).metrics()

    @torch.no_grad()
    def _measure(self, model: nn.Module) -> dict[str, float]:
        if self.validation is None:
            return {}
        packed, sums = Packed.load(self.validation), torch.zeros(3, dtype=torch.float64)
        with evaluating(model):
            for start in range(0, len(packed.ids), self.measure_batch):
                indices = range(start, min(start + self.measure_batch, len(packed.ids)))
                batch = as_batch(packed, indices).to(self.worker.device)
                logits_BTV, labels_BT = predict(model, batch)
                loss = cross_entropy(logits_BTV.flatten(0, 1), labels_BT.flatten())
                right = (logits_BTV.argmax(-1) == labels_BT).sum()
                sums += torch.tensor([float(loss), float(right), batch.num_targets], dtype=torch.float64)
        loss, right, num = sums.tolist()
        return {"validation_loss": loss / num, "validation_accuracy": right / num}


def as_batch(packed: Packed, indices: Sequence[int]) -> Batch:
    """Rows [B, T] of ids, labels and positions, int64; T ends with the last token that one of them learns from."""
    rows = list(indices)
    length = columns_needed(torch.from_numpy(packed.labels[rows] != IGNORED))
    ids, labels, positions = (
        torch.from_numpy(given[rows, :length]).long() for given in (packed.ids, packed.labels, packed.positions)
    )
    return Batch({"ids_BT": ids, "labels_BT": labels, "positions_BT": positions}, int((labels != IGNORED).sum()))


def predict(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """Logits [B, T - 1, V] and the labels [B, T - 1] of the tokens that they predict.

    Without a mask and a cache, `transformers` keeps conversations of a row apart by their positions.
    """
    given = batch.tensors
    logits_BTV = model(
        input_ids=given["ids_BT"][:, :-1], position_ids=given["positions_BT"][:, :-1], use_cache=False
    ).logits
    return logits_BTV, given["labels_BT"][:, 1:]


def with_lora(model: nn.Module, lora: Lora) -> nn.Module:
    """The model, frozen, with adapters that change nothing yet."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=lora.rank, lora_alpha=lora.alpha, target_modules="all-linear", lora_dropout=0.0, task_type="CAUSAL_LM"
    )
    with torch.random.fork_rng():
        torch.manual_seed(lora.seed)
        return get_peft_model(model, config)  # pyrefly: ignore[bad-argument-type]
