"""Learning-rate schedules as pure functions of the step. Imported to plan: no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

Schedule = Literal["constant", "linear", "cosine", "wsd"]


@dataclass(frozen=True)
class LearningRate:
    """The learning rate of every step of a run of `num_steps` steps.

    It rises linearly over the first `warmup_fraction` of the steps, whose last has the peak, and falls to
    `final_fraction` of the peak at the last step. `wsd` (warm-up, stable, decay; arXiv 2404.06395) holds the peak and
    falls linearly over the last `decay_fraction` of the steps.
    """

    peak: float
    num_steps: int
    schedule: Schedule = "cosine"
    warmup_fraction: float = 0.0
    final_fraction: float = 0.0
    decay_fraction: float = 0.2

    def at(self, step: int) -> float:
        """Learning rate of the update numbered `step`, from 0."""
        num_warmup = round(self.warmup_fraction * self.num_steps)
        if step < num_warmup:
            return self.peak * (step + 1) / num_warmup
        return self.peak * self._share(step, num_warmup)

    def _share(self, step: int, num_warmup: int) -> float:
        last = self.num_steps - 1
        match self.schedule:
            case "constant":
                return 1.0
            case "linear":
                return self._fall(_progress(step, num_warmup, last))
            case "cosine":
                return self._fall((1 - math.cos(math.pi * _progress(step, num_warmup, last))) / 2)
            case "wsd":
                num_decay = max(1, round(self.decay_fraction * self.num_steps))
                return self._fall(_progress(step, max(num_warmup, self.num_steps - num_decay), last, from_peak=False))

    def _fall(self, progress: float) -> float:
        return 1 - (1 - self.final_fraction) * progress


def _progress(step: int, start: int, last: int, *, from_peak: bool = True) -> float:
    """How far `step` is from `start` to `last`, 0 to 1; without `from_peak` the step before `start` is the 0."""
    zero = start if from_peak else start - 1
    return min(1.0, max(0.0, (step - zero) / (last - zero))) if last > zero else 0.0
