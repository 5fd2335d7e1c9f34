"""What a training run tells while it goes, from worker 0 alone, and what it cost."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from stages.memory import peak_memory_bytes

if TYPE_CHECKING:
    from stages.training.recipe import Worker


class Telemetry:
    """Curves, progress and messages of a run of `num_steps` steps of `step_tokens` each: tokens, or another `unit`."""

    def __init__(self, worker: Worker, num_steps: int, step_tokens: int, unit: str) -> None:
        self.worker, self.num_steps, self.step_tokens, self.unit = worker, num_steps, step_tokens, unit
        self._seconds = 0.0
        self._num_timed = 0

    def updated(self, step: int, seconds: float, curves: Mapping[str, float]) -> None:
        """An update took `seconds`; `step` updates are done now."""
        self._seconds += seconds
        self._num_timed += 1
        self.curves(step, {**curves, f"{self.unit}_per_second": self.step_tokens / seconds})
        done, total = step * self.step_tokens, self.num_steps * self.step_tokens
        self._emit({"event": "progress", "done": done, "total": total, "unit": self.unit})

    def curves(self, step: int, values: Mapping[str, float]) -> None:
        """One point of each curve in `values`."""
        self._emit({"event": "curve", "step": step, "values": dict(values)})

    def say(self, message: str) -> None:
        """One line for the person who watches."""
        self._emit({"event": "message", "text": message})

    def cost(self) -> dict[str, float]:
        """Mean throughput of the updates made in this process, and the peak memory of this worker."""
        speed = self._num_timed * self.step_tokens / self._seconds if self._num_timed else 0.0
        return {f"{self.unit}_per_second": speed, "peak_memory_gib": peak_memory() / 2**30}

    def _emit(self, event: dict[str, Any]) -> None:
        if self.worker.rank == 0:
            self.worker.emit(event)


def peak_memory() -> int:
    """Most bytes this process has held: of the CUDA device where there is one, else resident."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return peak_memory_bytes()
