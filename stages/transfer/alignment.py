"""What a worker does to align: the teacher's layers run once, each hybrid layer learns to give what they gave."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor, nn
from transformers import PreTrainedModel

from grafts.hybrid.graft import mixers
from grafts.loader import load_model, save_model
from stages.artifacts import Dataset, Model
from stages.data.windows import TokenWindows
from stages.evaluate.distance import distance
from stages.training.recipe import Batch, Loss, Worker
from stages.training.windows import WindowRecipe, first_windows
from stages.transfer.mixers import Mixers, load_mixers, put_mixers, relative_errors, teacher_calls


@dataclass
class Alignment(WindowRecipe):
    """Layer-wise mean squared error of the attention layers' outputs, on the teacher's own hidden states."""

    teacher: Model
    student: Model
    data: Dataset
    heldout: Dataset | None
    heldout_windows: int
    measure_batch: int
    cache: Path
    out: Path
    layer_errors: Path
    """File for the final relative error of every layer, as JSON."""
    _live: _Live | None = field(default=None, repr=False)

    def prepare(self, worker: Worker) -> None:
        """Map the data, read the held-out windows, and load the teacher onto the device, frozen."""
        windows, heldout_NT = TokenWindows(self.data, self.cache), None
        if self.heldout is not None:
            heldout_NT = first_windows(self.heldout, self.cache, self.heldout_windows)
        teacher = load_model(self.teacher.path, dtype=worker.dtype).to(worker.device).requires_grad_(False)
        self._live = _Live(worker, teacher, windows, heldout_NT)

    @property
    def live(self) -> _Live:
        """What `prepare` has loaded."""
        assert self._live is not None, "the loop calls `prepare` first"
        return self._live

    @property
    def windows(self) -> TokenWindows:
        """The training data."""
        return self.live.windows

    def build(self) -> nn.Module:
        """The student's hybrid layers, each with weights of its own."""
        return load_mixers(self.student.path, self.live.teacher)

    def whole(self, ids_BT: Tensor) -> Batch:
        """Windows [B, T] of token ids; every token is a target."""
        return Batch({"ids_BT": ids_BT}, num_targets=ids_BT.numel())

    def loss(self, model: nn.Module, batch: Batch) -> Loss:
        """The layers' squared errors, summed: their gradients do not meet, so the sum aligns each by itself."""
        return Loss(model(teacher_calls(self.live.teacher, batch.tensors["ids_BT"])).sum())

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """The loss on the held-out windows."""
        if self.live.heldout is None:
            return {}
        return {"heldout_loss": self.mean_losses(model, self.live.heldout, self.measure_batch)["loss"]}

    def finish(self, model: nn.Module) -> dict[str, float]:
        """Save the student with its aligned layers, and measure how near the teacher it is."""
        assert isinstance(model, Mixers), f"expected the hybrid layers, got {type(model).__name__}"
        student = load_model(self.student.path, dtype=self.live.worker.dtype)
        put_mixers(model, student)
        save_model(student, self.out, tokenizer_from=self.student.path, dtype=self.live.worker.stored)
        return {} if self.live.heldout is None else self._measure(student, self.live.heldout)

    def _measure(self, student: PreTrainedModel, windows_NT: Tensor) -> dict[str, float]:
        teacher, student = self.live.teacher, student.to(self.live.worker.device)
        errors = relative_errors(Mixers(mixers(student)), teacher, windows_NT, self.measure_batch)
        self.layer_errors.write_text(json.dumps(errors), encoding="utf-8")
        found = distance(
            teacher, student, windows_NT, batch_size=self.measure_batch, progress=self.live.worker.measured
        )
        return {"layer_error": sum(errors.values()) / len(errors), **found.metrics()}


@dataclass(frozen=True)
class _Live:
    """What a worker holds while it trains."""

    worker: Worker
    teacher: PreTrainedModel
    windows: TokenWindows
    heldout: Tensor | None
    """Token ids [N, T], None without held-out data."""
