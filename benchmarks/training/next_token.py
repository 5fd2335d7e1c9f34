"""Next-token training: our loop and the Hugging Face `Trainer`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.training.measuring import SEED, Listener, arguments, clocks, in_our_order, result, training, windows
from grafts.loader import load_model
from stages.stage import Context
from stages.training.launch import run_training
from stages.training.recipe import Batch, Loss, Recipe, Worker
from stages.training.settings import TrainingParameters


@dataclass
class NextToken(Recipe):
    """Next-token cross-entropy by the model's own loss function, as the `Trainer` computes it."""

    task: dict[str, Any]

    def prepare(self, worker: Worker) -> None:  # noqa: ARG002
        self.windows = windows(self.task)

    def build(self) -> nn.Module:
        return load_model(Path(self.task["model"]), dtype=torch.float32)

    @property
    def num_samples(self) -> int:
        return len(self.windows)

    @property
    def sample_tokens(self) -> int:
        return self.windows.sequence_length

    def batch(self, indices: Sequence[int]) -> Batch:
        ids_BT = self.windows.stack(indices)
        return Batch({"ids_BT": ids_BT}, num_targets=ids_BT.shape[0] * (ids_BT.shape[1] - 1))

    def loss(self, model: nn.Module, batch: Batch) -> Loss:
        ids_BT = batch.tensors["ids_BT"]
        loss = model(input_ids=ids_BT, labels=ids_BT, use_cache=False, num_items_in_batch=1).loss
        return Loss(loss)

    def finish(self, model: nn.Module) -> dict[str, float]:  # noqa: ARG002
        return {}


def measure_regraft(task: dict[str, Any]) -> dict[str, float]:
    """Our loop."""
    heard, scratch = Listener(), Path(task["scratch"])
    context = Context({}, out=scratch, scratch=scratch, seed=SEED, emit=heard)
    run_training(NextToken(task), TrainingParameters(**training(task)), context)
    return result(task, heard.ends, heard.losses)


def measure_transformers(task: dict[str, Any]) -> dict[str, float]:
    """The Trainer, on the same windows in the same order."""
    from transformers import Trainer, TrainerCallback, TrainingArguments, default_data_collator

    ends = []

    class Clock(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            ends.append(clocks())

    class Ordered(Trainer):
        def _get_train_sampler(self, *_: Any) -> Any:
            return torch.utils.data.SequentialSampler(self.train_dataset)

    rows = [{"input_ids": window, "labels": window} for window in in_our_order(task)]
    model = load_model(Path(task["model"]), dtype=torch.float32)
    model.config.use_cache = False
    trainer = Ordered(model, TrainingArguments(**arguments(task)), default_data_collator, rows, callbacks=[Clock()])
    trainer.train()
    return result(task, ends, [entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
