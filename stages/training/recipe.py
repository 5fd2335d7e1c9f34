"""What a stage gives to the loop: the module to train, samples by index, a loss, and what to do at the end.

A recipe crosses process boundaries, so it holds paths and numbers only, until `prepare` has run on a worker.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from grafts.arithmetic import dtype_name

Emit = Callable[[dict[str, Any]], None]
"""Where events go: `Context.emit`, or whatever brings them there from another process."""


Stopping = Callable[[], bool]
"""Whether to save a checkpoint and stop."""


@dataclass(frozen=True)
class Worker:
    """Where a recipe runs: its rank among the workers, the device and the dtype of forward passes."""

    rank: int
    world_size: int
    device: torch.device
    dtype: torch.dtype
    emit: Emit = lambda _: None
    stopping: Stopping = lambda: False
    """Asked once a step, by worker 0."""
    written: torch.dtype | None = None
    """Type of the weights in the result, if not `dtype`."""

    @property
    def computed_in(self) -> str:
        """The name of `dtype`, such as `float32`."""
        return dtype_name(self.dtype)

    def measured(self, done: float, total: float, unit: str) -> None:
        """Tell how far a measurement on held-out text is."""
        self.emit({"event": "progress", "done": done, "total": total, "unit": f"held-out {unit}"})

    @property
    def stored(self) -> torch.dtype:
        """What the weights of the result are written in: give it to `save_model`, then measure the model."""
        return self.written or self.dtype


@dataclass(frozen=True)
class Batch:
    """Samples ready for one forward pass (tensors on the CPU) and the number of target tokens in them."""

    tensors: Mapping[str, Tensor]
    num_targets: int

    def to(self, device: torch.device) -> Batch:
        """The same batch with its tensors on `device`."""
        return Batch({name: x.to(device, non_blocking=True) for name, x in self.tensors.items()}, self.num_targets)


def columns_needed(target_BT: Tensor) -> int:
    """How many columns a causal model has to be given for the marked targets: none after the last; 2 without any."""
    marked_T = target_BT.any(0).nonzero()
    return int(marked_T.max()) + 1 if len(marked_T) else 2


@dataclass(frozen=True)
class Loss:
    """A loss summed over target tokens, with the sums of the parts that deserve a curve of their own (detached).

    The loop divides by the number of target tokens of the whole global batch: never a mean of means.
    """

    total: Tensor
    parts: Mapping[str, Tensor] = field(default_factory=dict)


class Recipe(ABC):
    """One training task. Every method but `finish` runs on every worker; it must be picklable before `prepare`."""

    unit: ClassVar[str] = "tokens"
    """What `sample_tokens` counts; another unit than tokens says that samples are made while training goes on."""
    loss_name: ClassVar[str] = "loss"
    """Of the curve, and of the last loss among the figures."""

    @abstractmethod
    def prepare(self, worker: Worker) -> None:
        """Load, once a worker, what training needs beside the module: data, teachers."""

    @abstractmethod
    def build(self) -> nn.Module:
        """The module to train, on the CPU, equal on every worker."""

    @property
    @abstractmethod
    def num_samples(self) -> int:
        """Samples in the training data."""

    @property
    @abstractmethod
    def sample_tokens(self) -> int:
        """Tokens that one sample takes from the budget, padding included."""

    @abstractmethod
    def batch(self, indices: Sequence[int]) -> Batch:
        """The samples at `indices` (at least one), always the same for the same indices."""

    @abstractmethod
    def loss(self, model: nn.Module, batch: Batch) -> Loss:
        """Loss of `batch` under `model` (the engine: call it like the module), summed over its target tokens."""

    def evaluate(self, model: nn.Module) -> dict[str, float]:  # noqa: ARG002
        """Figures on held-out data while training goes on, by name; equal on every worker. None by default."""
        return {}

    def settle(self) -> None:
        """Called on every worker before a checkpoint: what could not be made again after it has to be on disk."""

    @abstractmethod
    def finish(self, model: nn.Module) -> dict[str, float]:
        """Save the trained module and measure it; runs on worker 0 alone, returns the final figures by name."""
