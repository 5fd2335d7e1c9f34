"""The plain task: next-token prediction on packed windows, and the distance to the model it began with."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from grafts.loader import load_model, save_model
from stages.artifacts import Dataset, Model
from stages.data.windows import TokenWindows
from stages.evaluate.distance import distance
from stages.training.apart import require_apart
from stages.training.cross_entropy import IGNORED, cross_entropy
from stages.training.recipe import Batch, Loss, Worker
from stages.training.windows import WindowRecipe, first_windows


@dataclass
class LanguageModelling(WindowRecipe):
    """Train `model` on `data` by cross-entropy; every token but the first of a window is a target.

    Where documents are kept apart (see `TokenWindows`), the first token of a document is no target either.
    """

    keeps_apart: ClassVar[bool] = False
    """Whether the recipe can: its batches then have `positions_BT`. One that cannot refuses such data."""

    model: Model
    data: Dataset
    heldout: Dataset | None
    """Measures the loss meanwhile and the distance to `parent` at the end, on its first `heldout_windows` windows."""
    heldout_windows: int
    measure_batch: int
    """Windows in a forward pass of these measurements."""
    parent: Model
    cache: Path
    out: Path
    _worker: Worker | None = field(default=None, repr=False)
    _windows: TokenWindows | None = field(default=None, repr=False)
    _held: Tensor | None = field(default=None, repr=False)
    """Held-out token ids [N, T]."""

    def prepare(self, worker: Worker) -> None:
        """Map the data, and read the held-out windows."""
        self._worker, self._windows = worker, TokenWindows(self.data, self.cache, apart=self.keeps_apart)
        if self.heldout is not None:
            self._held = first_windows(self.heldout, self.cache, self.heldout_windows)

    def build(self) -> nn.Module:
        """The model, in the precision of the training."""
        model = load_model(self.model.path, dtype=self.worker.dtype)
        if self.apart:
            require_apart(model)
        return model

    @property
    def apart(self) -> bool:
        """Whether documents in a window are not to see each other."""
        return self.windows.apart

    @property
    def worker(self) -> Worker:
        """Where this runs."""
        assert self._worker is not None, "the loop calls `prepare` first"
        return self._worker

    @property
    def windows(self) -> TokenWindows:
        """The training data."""
        assert self._windows is not None, "the loop calls `prepare` first"
        return self._windows

    def loss(self, model: nn.Module, batch: Batch) -> Loss:
        """Cross-entropy summed over the T - 1 positions of each window that have a next token."""
        ids_BT, positions_BT = batch.tensors["ids_BT"], batch.tensors.get("positions_BT")
        if positions_BT is None:
            logits_PV = model(input_ids=ids_BT[:, :-1], use_cache=False).logits.flatten(0, 1)
            return Loss(cross_entropy(logits_PV, ids_BT[:, 1:].flatten()))
        output = model(input_ids=ids_BT[:, :-1], position_ids=positions_BT[:, :-1], use_cache=False)
        labels_BT = torch.where(positions_BT == 0, IGNORED, ids_BT)
        return Loss(cross_entropy(output.logits.flatten(0, 1), labels_BT[:, 1:].flatten()))

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """The losses on the held-out windows, `heldout_` before their names."""
        if self._held is None:
            return {}
        losses = self.mean_losses(model, self._held, self.measure_batch)
        return {f"heldout_{name}": value for name, value in losses.items()}

    def finish(self, model: nn.Module) -> dict[str, float]:
        """Save the model with its tokenizer, and measure it against its parent on the held-out windows."""
        assert isinstance(model, PreTrainedModel), f"expected a PreTrainedModel, got {type(model).__name__}"
        save_model(model, self.out, tokenizer_from=self.model.path, dtype=self.worker.stored)
        if self._held is None:
            return {}
        return self._distance(load_model(self.parent.path, dtype=self.worker.dtype), model, self._held)

    def _distance(self, parent: PreTrainedModel, model: PreTrainedModel, windows_NT: Tensor) -> dict[str, float]:
        """Figures of `model` against `parent`, both where this runs."""
        pair = [each.to(self.worker.device) for each in (parent, model)]
        return distance(*pair, windows_NT, batch_size=self.measure_batch, progress=self.worker.measured).metrics()
