"""One measurement of one contender, in a process of its own; prints a line of JSON. See `benchmarks.training`."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from grafts.loader import load_model
from stages.artifacts import Dataset
from stages.data.windows import TokenWindows
from stages.stage import Context
from stages.training.launch import run_training
from stages.training.order import global_batch
from stages.training.recipe import Batch, Loss, Recipe, Worker
from stages.training.settings import TrainingParameters
from stages.training.telemetry import peak_memory

SEED = 0
LEARNING_RATE = 1e-4


@dataclass
class NextToken(Recipe):
    """Next-token cross-entropy by the model's own loss function, as the `Trainer` computes it."""

    task: dict[str, Any]

    def prepare(self, worker: Worker) -> None:  # noqa: ARG002
        self.windows = _windows(self.task)

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
    ends, losses = [], []

    def emit(event: dict[str, Any]) -> None:
        if event["event"] == "curve":
            ends.append(_clocks())
            losses.append(event["values"]["loss"])

    params = TrainingParameters(
        tokens=(task["steps"] + 1) * task["batch"] * task["length"],
        batch_sequences=task["batch"],
        micro_batch=task["micro_batch"],
        zero_stage=task["zero_stage"],
        precision=task["precision"],
        learning_rate=LEARNING_RATE,
        schedule="constant",
        warmup_fraction=0,
        beta2=0.999,
    )
    scratch = Path(task["scratch"])
    run_training(NextToken(task), params, Context({}, out=scratch, scratch=scratch, seed=SEED, emit=emit))
    return _result(task, ends, losses)


def measure_transformers(task: dict[str, Any]) -> dict[str, float]:
    from transformers import Trainer, TrainerCallback, TrainingArguments, default_data_collator

    ends, windows = [], _windows(task)
    order = [i for s in range(task["steps"] + 1) for i in global_batch(s, task["batch"], len(windows), SEED)]

    class Clock(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            ends.append(_clocks())

    class Ordered(Trainer):
        def _get_train_sampler(self, *_: Any) -> Any:
            return torch.utils.data.SequentialSampler(self.train_dataset)

    arguments = TrainingArguments(
        output_dir=task["scratch"],
        use_cpu=not torch.cuda.is_available(),
        bf16=task["precision"] == "bf16",
        max_steps=task["steps"] + 1,
        per_device_train_batch_size=task["micro_batch"],
        gradient_accumulation_steps=task["batch"] // task["micro_batch"],
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="constant",
        optim="adamw_torch_fused",
        max_grad_norm=1.0,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    rows = [{"input_ids": windows[i], "labels": windows[i]} for i in order]
    model = load_model(Path(task["model"]), dtype=torch.float32)
    model.config.use_cache = False
    trainer = Ordered(model, arguments, default_data_collator, rows, callbacks=[Clock()])
    trainer.train()
    return _result(task, ends, [entry["loss"] for entry in trainer.state.log_history if "loss" in entry])


def _clocks() -> tuple[float, float]:
    """Wall and processor seconds; the second tells more on a machine that others use too."""
    return time.perf_counter(), time.process_time()


def _windows(task: dict[str, Any]) -> TokenWindows:
    return TokenWindows(Dataset(Path(task["data"])), Path(task["scratch"]) / "windows")


def _result(task: dict[str, Any], ends: list[tuple[float, float]], losses: list[float]) -> dict[str, float]:
    seconds, cpu_seconds = ends[-1][0] - ends[0][0], ends[-1][1] - ends[0][1]
    tokens = task["steps"] * task["batch"] * task["length"]
    return {
        "tokens_per_second": tokens / seconds,
        "cpu_ms_per_token": 1000 * cpu_seconds / tokens,
        "peak_gib": peak_memory() / 2**30,
        "last_loss": losses[-1],
    }


if __name__ == "__main__":
    asked = json.loads(sys.argv[1])
    measure = {"regraft": measure_regraft, "transformers": measure_transformers}[asked["contender"]]
    print(json.dumps(measure(asked)))
