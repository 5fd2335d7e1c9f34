"""What a measurement is made of: clocks, the data, and the line of figures."""

from __future__ import annotations

import gc
import time
from pathlib import Path
from typing import Any

import torch

from stages.artifacts import Dataset
from stages.data.windows import TokenWindows
from stages.memory import reset_peak_memory
from stages.training.order import global_batch
from stages.training.telemetry import peak_memory

SEED = 0
LEARNING_RATE = 1e-4

Clocks = tuple[float, float]
"""Wall and processor seconds; the second tells more on a machine that others use too."""


def clocks() -> Clocks:
    """The time now."""
    return time.perf_counter(), time.process_time()


def windows(task: dict[str, Any]) -> TokenWindows:
    """The training data."""
    return TokenWindows(Dataset(Path(task["data"])), Path(task["scratch"]) / "windows")


def in_our_order(task: dict[str, Any]) -> list[torch.Tensor]:
    """All windows that will be trained on, in the order in which our loop takes them."""
    data = windows(task)
    steps = range(task["steps"] + 1)
    return [data[index] for step in steps for index in global_batch(step, task["batch"], len(data), SEED)]


def training(task: dict[str, Any]) -> dict[str, Any]:
    """Parameters of our loop."""
    return {
        "tokens": (task["steps"] + 1) * task["batch"] * task["length"],
        "batch_sequences": task["batch"],
        "micro_batch": task["micro_batch"],
        "zero_stage": task["zero_stage"],
        "precision": task["precision"],
        "learning_rate": LEARNING_RATE,
        "schedule": "constant",
        "warmup_fraction": 0,
        "beta2": 0.999,
    }


def arguments(task: dict[str, Any]) -> dict[str, Any]:
    """The same for a `TrainingArguments`."""
    return {
        "output_dir": task["scratch"],
        "use_cpu": not torch.cuda.is_available(),
        "bf16": task["precision"] == "bf16",
        "max_steps": task["steps"] + 1,
        "per_device_train_batch_size": task["micro_batch"],
        "gradient_accumulation_steps": task["batch"] // task["micro_batch"],
        "learning_rate": LEARNING_RATE,
        "lr_scheduler_type": "constant",
        "optim": "adamw_torch_fused",
        "max_grad_norm": 1.0,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }


class Listener:
    """Takes the events of our loop: when each step ended, and its loss."""

    def __init__(self) -> None:
        self.ends: list[Clocks] = []
        self.losses: list[float] = []

    def __call__(self, event: dict[str, Any]) -> None:
        if event["event"] == "curve":
            self.ends.append(clocks())
            self.losses.append(event["values"]["loss"])


def forget_peak() -> None:
    """Begin to measure memory anew, after something that does not count has gone."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    reset_peak_memory()


def result(task: dict[str, Any], ends: list[Clocks], losses: list[float]) -> dict[str, float]:
    """Figures of all steps but the first."""
    seconds, cpu_seconds = ends[-1][0] - ends[0][0], ends[-1][1] - ends[0][1]
    tokens = task["steps"] * task["batch"] * task["length"]
    return {
        "tokens_per_second": tokens / seconds,
        "cpu_ms_per_token": 1000 * cpu_seconds / tokens,
        "peak_gib": peak_memory() / 2**30,
        "last_loss": losses[-1],
    }
