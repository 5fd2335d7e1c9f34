"""One training run as every worker gets it, and what it ends with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.training.schedule import LearningRate

if TYPE_CHECKING:
    from stages.stage import Parameters
    from stages.training.precision import Precision
    from stages.training.recipe import Recipe
    from stages.training.settings import TrainingParameters


@dataclass(frozen=True)
class Task:
    """One training run, as every worker gets it."""

    recipe: Recipe
    settings: TrainingParameters
    seed: int
    checkpoint_directory: Path
    asked: Precision | None = None
    """The precision before `auto` was settled, which says what the result is written in; that of `settings` without."""

    def learning_rate(self, num_steps: int) -> LearningRate:
        """The learning rate of every step of a run of `num_steps`."""
        settings = self.settings
        return LearningRate(
            peak=settings.learning_rate,
            num_steps=num_steps,
            schedule=settings.schedule,
            warmup_fraction=settings.warmup_fraction,
            final_fraction=settings.final_fraction,
            decay_fraction=settings.decay_fraction,
        )


@dataclass(frozen=True)
class TrainingResult:
    """What a run ends with: `figures` of the model, equal for equal work, and what they `cost`, which never is."""

    figures: dict[str, float]
    cost: dict[str, float]
    computed_in: str
    """Type of forward and backward, `float32` or `bfloat16`: what `precision: auto` was where this trained."""

    def details(self, params: Parameters, seed: int) -> dict[str, Any]:
        """What every report of a training says of how it was made."""
        return {"parameters": params.identity(), "seed": seed, "computed_in": self.computed_in}
