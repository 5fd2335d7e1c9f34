"""The smallest recipe: next-token cross-entropy on tiny windows, with an optional loss mask and injected faults."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from grafts.loader import load_model, save_model
from stages.artifacts import Dataset
from stages.data.windows import TokenWindows
from stages.errors import UserError
from stages.stage import Context, Resources
from stages.training.launch import run_training
from stages.training.recipe import Batch, Loss, Recipe, Worker
from stages.training.settings import TrainingParameters
from stages.training.task import TrainingResult


@dataclass
class LanguageModel(Recipe):
    model: Path
    data: Dataset
    out: Path
    masked: bool = False
    """Whether windows keep different shares of their targets, from nearly none to all."""
    fault: str = ""
    """`nan`: a loss that is not finite in the second step; `user`: a UserError on the last worker in the fourth."""

    def prepare(self, worker: Worker) -> None:
        self.worker = worker
        self.windows = TokenWindows(self.data, self.out.parent / "windows")
        self.num_losses = 0

    def build(self) -> nn.Module:
        return load_model(self.model, dtype=torch.float32)

    @property
    def num_samples(self) -> int:
        return len(self.windows)

    @property
    def sample_tokens(self) -> int:
        return self.windows.sequence_length

    def batch(self, indices: Sequence[int]) -> Batch:
        ids_BT = self.windows.stack(indices)
        labels_BT = ids_BT[:, 1:].clone()
        if self.masked:
            for row, index in enumerate(indices):
                labels_BT[row, : (index * 7) % labels_BT.shape[1]] = -100
        return Batch({"ids_BT": ids_BT, "labels_BT": labels_BT}, num_targets=int((labels_BT != -100).sum()))

    def loss(self, model: nn.Module, batch: Batch) -> Loss:
        self.num_losses += 1
        if self.fault == "user" and self.num_losses == 4 and self.worker.rank == self.worker.world_size - 1:
            raise UserError("the data is upside down", fix="turn it")
        logits_BTV = model(input_ids=batch.tensors["ids_BT"][:, :-1], use_cache=False).logits.float()
        labels = batch.tensors["labels_BT"].flatten()
        total = nn.functional.cross_entropy(logits_BTV.flatten(0, 1), labels, reduction="sum", ignore_index=-100)
        return Loss(total * (torch.nan if self.fault == "nan" and self.num_losses == 2 else 1.0))

    def finish(self, model: nn.Module) -> dict[str, float]:
        save_model(model, self.out, tokenizer_from=self.model)
        return {"saved": 1.0}


@dataclass
class Run:
    """What a finished run left: its result, events, and the saved model's directory."""

    result: TrainingResult
    events: list[dict]
    out: Path

    def curve(self, name: str) -> list[float]:
        return [event["values"][name] for event in self.events if event["event"] == "curve" and name in event["values"]]

    @property
    def weights(self) -> bytes:
        return (self.out / "model.safetensors").read_bytes()


def parameters(recipe: LanguageModel, **settings) -> TrainingParameters:
    plan = {"tokens": 5 * 8 * recipe.data.card.sequence_length, "batch_sequences": 8, "micro_batch": 8}
    plan |= {"learning_rate": 1e-2, "precision": "fp32"}
    return TrainingParameters(**{**plan, **settings})


def run(recipe: LanguageModel, scratch: Path, *, workers: int = 1, seed: int = 3, emit=None, **settings) -> Run:
    """Train `recipe` for 5 steps of 8 windows unless `settings` say otherwise."""
    events: list[dict] = []
    params = parameters(recipe, **settings)
    resources = Resources(workers=workers, cpus=0.5)

    def collect(event: dict) -> None:  # a local closure: not every emitter can be pickled
        events.append(event)
        if emit:
            emit(event)

    context = Context(inputs={}, out=recipe.out, scratch=scratch, seed=seed, emit=collect, resources=resources)
    return Run(run_training(recipe, params, context), events, recipe.out)
