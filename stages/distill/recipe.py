"""What a worker does to distil: load the teacher, build the student, compare their logits, save and measure."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from grafts.depth import keep_layers, num_kept_layers, uniform_layers
from grafts.loader import load_model, save_model
from stages.artifacts import Dataset, Model
from stages.data.windows import TokenWindows
from stages.distill.losses import Mix, distill_loss
from stages.evaluate.distance import Distance, distance
from stages.training.recipe import Batch, Loss, Worker
from stages.training.windows import WindowRecipe

if TYPE_CHECKING:
    from stages.distill.logits import DistillParameters
    from stages.stage import Context


@dataclass
class Distillation(WindowRecipe):
    """Logit distillation on packed windows; every token but the first of a window is a target."""

    teacher: Model
    student: Model | None
    data: Dataset
    heldout: Dataset | None
    params: DistillParameters
    cache: Path
    out: Path
    _live: _Live | None = field(default=None, repr=False)

    @classmethod
    def of(cls, params: DistillParameters, context: Context) -> Distillation:
        """The distillation that a stage's parameters and inputs ask for."""
        inputs = context.inputs
        student, heldout = inputs.get("student"), inputs.get("heldout")
        out, cache = context.output("model"), context.scratch / "windows"
        return cls(context.model("teacher"), student, context.dataset("data"), heldout, params, cache, out)

    def prepare(self, worker: Worker) -> None:
        """Load the teacher onto the device, frozen, and map the data."""
        teacher = load_model(self.teacher.path, dtype=worker.dtype).to(worker.device).requires_grad_(False)
        windows = TokenWindows(self.data, self.cache)
        heldout = TokenWindows(self.heldout, self.cache) if self.heldout else None
        heldout_NT = heldout.tensor(self.params.heldout_windows) if heldout else None
        mix = Mix(self.params.kl_weight, self.params.ce_weight, self.params.temperature)
        self._live = _Live(worker, teacher, windows, heldout_NT, mix)

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
        """The given student, or the teacher with fewer layers; dropout, where a config has it, stays as it is there."""
        if self.student is not None:
            return load_model(self.student.path, dtype=self.live.worker.dtype)
        num_layers = self.live.teacher.config.num_hidden_layers
        layers = uniform_layers(num_layers, num_kept_layers(num_layers, self.params.depth_fraction))
        return keep_layers(self.live.teacher, layers)

    def loss(self, model: nn.Module, batch: Batch) -> Loss:
        """KL to the teacher and cross-entropy, mixed, at the T - 1 positions of each window that have a next token."""
        ids_BT = batch.tensors["ids_BT"]
        with torch.no_grad():
            teacher_PV = _logits(self.live.teacher, ids_BT)
        found = distill_loss(_logits(model, ids_BT), teacher_PV, ids_BT[:, 1:].flatten(), self.live.mix)
        return Loss(found.total, {"kl": found.kl, "ce": found.ce})

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Distance to the teacher on the held-out windows."""
        measured = self._measure(model)
        return {} if measured is None else {f"heldout_{name}": value for name, value in measured.metrics().items()}

    def finish(self, model: nn.Module) -> dict[str, float]:
        """Save the student with its tokenizer and measure it on the held-out windows."""
        assert isinstance(model, PreTrainedModel), f"a student is a PreTrainedModel, got {type(model).__name__}"
        save_model(model, self.out, tokenizer_from=(self.student or self.teacher).path)
        measured = self._measure(model)
        return {} if measured is None else measured.metrics()

    def _measure(self, model: nn.Module) -> Distance | None:
        if self.live.heldout is None:
            return None
        return distance(
            self.live.teacher,
            model,
            self.live.heldout,
            batch_size=self.params.micro_batch,
            progress=lambda done, total, unit: self.live.worker.emit(
                {"event": "progress", "done": done, "total": total, "unit": f"held-out {unit}"}
            ),
        )


@dataclass(frozen=True)
class _Live:
    """What a worker holds while it trains."""

    worker: Worker
    teacher: PreTrainedModel
    windows: TokenWindows
    heldout: Tensor | None
    """Token ids [N, T], None without held-out data."""
    mix: Mix


def _logits(model: nn.Module, ids_BT: Tensor) -> Tensor:
    """Logits [B * (T - 1), V] for every next token of `ids_BT`."""
    return model(input_ids=ids_BT[:, :-1], use_cache=False).logits.flatten(0, 1)
