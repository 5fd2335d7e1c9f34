"""What a worker does to distil: train a student beside its teacher, or beside a cache of it; save and measure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from grafts.depth import keep_layers, num_kept_layers, uniform_layers
from grafts.loader import load_model, save_model
from stages.artifacts import Dataset, Model
from stages.data.windows import TokenWindows
from stages.distill.cached import CachedTeacher, top_teacher
from stages.distill.layer_map import Pairs, layer_pairs
from stages.distill.losses import Mix, distill_loss
from stages.distill.sampling import is_sampled
from stages.distill.settings import LogitsParameters
from stages.distill.teachers import Teacher, WholeTeacher
from stages.distill.terms import LayerTerms
from stages.distill.text import Text
from stages.evaluate.distance import Distance, distance
from stages.evaluate.matching import text_config
from stages.training.cross_entropy import cross_entropy
from stages.training.recipe import Batch, Loss, Worker
from stages.training.windows import WindowRecipe, first_windows

if TYPE_CHECKING:
    from stages.distill.settings import DistillParameters
    from stages.stage import Context


@dataclass
class Distillation(WindowRecipe):
    """Distillation on packed windows; every token but the first of a window is a target."""

    teacher: Model
    student: Model | None
    data: Dataset
    heldout: Dataset | None
    params: DistillParameters
    cache: Path
    """Where windows are decoded to."""
    out: Path
    cached: Dataset | None = None
    """What the teacher said on `data`; without it the teacher runs."""
    _live: _Live | None = field(default=None, repr=False)

    @classmethod
    def of(cls, params: DistillParameters, context: Context) -> Distillation:
        """The distillation that a stage's parameters and inputs ask for."""
        return cls(
            teacher=context.model("teacher"),
            student=context.inputs.get("student"),
            data=context.dataset("data"),
            heldout=context.inputs.get("heldout"),
            params=params,
            cache=context.scratch / "windows",
            out=context.output("model"),
            cached=context.inputs.get("cache"),
        )

    def prepare(self, worker: Worker) -> None:
        """Map the data, and load the teacher onto the device, frozen, unless a cache or the text stands in for it."""
        windows = TokenWindows(self.data, self.cache)
        limit = self.params.heldout_windows
        heldout_NT = first_windows(self.heldout, self.cache, limit) if self.heldout else None
        cached = CachedTeacher(self.cached, self.cache) if self.cached else None
        self._live = _Live(worker, self._layer_terms(), None, cached, windows, heldout_NT)
        self._live.teacher = self._load_teacher() if self.params.asks_teacher and not cached else None

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
            return self.live.terms.unfused(load_model(self.student.path, dtype=self.live.worker.dtype))
        return self.live.terms.unfused(keep_layers(self._any_teacher(), self._kept()))

    def batch(self, indices: Sequence[int]) -> Batch:
        """Windows [B, T]; of those that the student continues, only what it writes is a target."""
        given, cached = super().batch(indices), self.live.cached
        tensors = {**given.tensors, **(cached.tensors(indices) if cached else {})}
        sampled = [is_sampled(index, self.params.on_policy_fraction) for index in indices]
        if not any(sampled):
            return Batch(tensors, given.num_targets)
        tensors |= {"index_B": torch.tensor(indices), "sampled_B": torch.tensor(sampled)}
        return Batch(tensors, given.num_targets - sum(sampled) * (self.params.prompt_tokens - 1))

    def loss(self, model: nn.Module, batch: Batch) -> Loss:
        """The terms that are asked for, mixed, at the positions that count."""
        text = Text.of(batch, model, self.params.prompt_tokens)
        return self.judge(model, _predict(model, text.ids, self.asked()), batch, text)

    def asked(self) -> dict[str, bool]:
        """What the student's `forward` is to give beside logits."""
        return self.live.terms.asked()

    def judge(self, model: nn.Module, student: Any, batch: Batch, text: Text) -> Loss:  # noqa: ARG002, for subclasses
        """The loss of the student's output on `text`."""
        if not self.params.asks_teacher:
            ce = cross_entropy(text.counted(student.logits), text.targets())
            return Loss(self.mix.ce_weight * ce, {"ce": ce.detach()})
        terms, values = self.live.terms, {}
        if self.live.cached:
            said: Teacher = top_teacher(batch)
        else:
            with torch.no_grad():
                teacher = _predict(self._any_teacher(), text.ids, terms.asked())
            said, values = WholeTeacher(text.counted(teacher.logits)), terms.values(student, teacher, text.counts)
        found = distill_loss(text.counted(student.logits), said, text.targets(), self.mix)
        parts = {self.params.divergence.removeprefix("forward_"): found.kl, "ce": found.ce, **values}
        return Loss(found.total + terms.total(values), {name: value.detach() for name, value in parts.items()})

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Distance to the teacher on the held-out windows."""
        measured = self._measure(model)
        return {} if measured is None else {f"heldout_{name}": value for name, value in measured.metrics().items()}

    def finish(self, model: nn.Module) -> dict[str, float]:
        """Save the student with its tokenizer and measure it on the held-out windows."""
        assert isinstance(model, PreTrainedModel), f"a student is a PreTrainedModel, got {type(model).__name__}"
        save_model(model, self.out, tokenizer_from=(self.student or self.teacher).path, dtype=self.live.worker.stored)
        measured = self._measure(model)
        return {} if measured is None else measured.metrics()

    @property
    def mix(self) -> Mix:
        """Weights of the losses between logits."""
        params = self.params
        return Mix(params.kl_weight, params.ce_weight, params.temperature, params.divergence, params.jsd_beta)

    def _any_teacher(self) -> PreTrainedModel:
        """The teacher that stays loaded, or, where training does not ask it, one that the caller drops again."""
        return self.live.teacher or self._load_teacher()

    def _load_teacher(self) -> PreTrainedModel:
        """The teacher on the device, frozen."""
        worker = self.live.worker
        teacher = load_model(self.teacher.path, dtype=worker.dtype).to(worker.device).requires_grad_(False)
        return self.live.terms.unfused(teacher)

    def _kept(self) -> list[int]:
        """The teacher's layers that its pruned self keeps."""
        num_layers = text_config(self.teacher.config)["num_hidden_layers"]
        assert isinstance(self.params, LogitsParameters), "all others are given a student"
        return uniform_layers(num_layers, num_kept_layers(num_layers, self.params.depth_fraction))

    def _layer_terms(self) -> LayerTerms:
        params = self.params
        pairs = self._pairs()[-(params.tail_layers or 0) :] if params.compares_layers else ()
        return LayerTerms(params.hidden_weight, params.attention_weight, pairs)

    def _pairs(self) -> Pairs:
        """Which layers are compared."""
        hidden = self.params.hidden_weight > 0
        num_teacher = text_config(self.teacher.config)["num_hidden_layers"]
        if self.student is not None:
            num_student = text_config(self.student.config)["num_hidden_layers"]
            return layer_pairs(self.params.layer_map, num_student, num_teacher, hidden=hidden)
        kept = self._kept()
        return layer_pairs(self.params.layer_map or list(enumerate(kept)), len(kept), num_teacher, hidden=hidden)

    def _measure(self, model: nn.Module) -> Distance | None:
        if self.live.heldout is None:
            return None
        return distance(
            self._any_teacher(),
            model,
            self.live.heldout,
            batch_size=self.params.micro_batch,
            progress=self.live.worker.measured if self.live.worker.rank == 0 else None,
        )


@dataclass
class _Live:
    """What a worker holds while it trains."""

    worker: Worker
    terms: LayerTerms
    teacher: PreTrainedModel | None
    """None while training does not ask it."""
    cached: CachedTeacher | None
    windows: TokenWindows
    heldout: Tensor | None
    """Token ids [N, T], None without held-out data."""


def _predict(model: nn.Module, ids_BT: Tensor, asked: dict[str, bool]) -> Any:
    """Logits [B, T - 1, V] for every next token, and what else is asked for."""
    return model(input_ids=ids_BT[:, :-1], use_cache=False, **asked)
