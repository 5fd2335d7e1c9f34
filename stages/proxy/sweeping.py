"""The points of a sweep and the convex quadratic through the better of them. Pure numpy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from stages.proxy.record import Trained
from stages.proxy.surface import Surface, best_points, fit_surface, num_coefficients, optimum_interval

CURVE_POINTS = 60
"""Of a fitted curve in the figure."""
Line = tuple[Sequence[float], Sequence[float]]
"""Learning rates, and the loss at each."""


@dataclass(frozen=True)
class Swept:
    """P points of a sweep: logarithms [P, 2] of learning rate and batch, and losses [P], means over the seeds."""

    logs: np.ndarray
    losses: np.ndarray

    @classmethod
    def of(cls, runs: Sequence[Trained]) -> Swept:
        """The points that `runs` make."""
        seeds: dict[tuple[float, float], dict[int, float]] = {}
        for run in runs:
            seeds.setdefault((run.learning_rate, float(run.batch_sequences)), {})[run.seed] = run.final
        points = sorted(seeds)
        losses = [np.mean(list(seeds[point].values())) for point in points]
        return cls(np.log(points), np.array(losses))

    @property
    def varied(self) -> list[int]:
        """The axes that vary: 0 the learning rate, 1 the batch."""
        return [axis for axis in range(2) if np.ptp(self.logs[:, axis]) > 0]

    @property
    def box(self) -> tuple[np.ndarray, np.ndarray]:
        """Low and high end [K] of the axes that vary."""
        x_PK = self.logs[:, self.varied]
        return x_PK.min(0), x_PK.max(0)

    def lines(self) -> dict[float, Line]:
        """The measured losses over the learning rates, by batch in sequences."""
        found: dict[float, Line] = {}
        for batch in np.unique(self.logs[:, 1]):
            here = self.logs[:, 1] == batch
            found[float(np.exp(batch))] = (np.exp(self.logs[here, 0]).tolist(), self.losses[here].tolist())
        return found

    def fitted_lines(self, surface: Surface) -> dict[float, Line]:
        """The same of the fit, over the whole range."""
        rates = np.linspace(self.logs[:, 0].min(), self.logs[:, 0].max(), CURVE_POINTS)
        found: dict[float, Line] = {}
        for batch in np.unique(self.logs[:, 1]):
            points = np.stack([rates, np.full(CURVE_POINTS, batch)], 1)[:, self.varied]
            found[float(np.exp(batch))] = (np.exp(rates).tolist(), surface(points).tolist())
        return found


@dataclass(frozen=True)
class SweepFit:
    """The fit, and its lowest point inside the sweep."""

    surface: Surface
    figures: dict[str, float]
    """`learning_rate` with its interval, `batch_sequences`, the `loss` there, and whether it lies `inside`."""


def fit_sweep(swept: Swept, best_share: float, confidence: float, draws: int, seed: int) -> SweepFit:
    """Fit the better points; all of them when those lie in a row. Raises ValueError when even that decides nothing."""
    x_PK, box = swept.logs[:, swept.varied], swept.box
    kept = best_points(swept.losses, best_share, num_coefficients(x_PK.shape[1]) + 1)
    try:
        surface = fit_surface(x_PK[kept], swept.losses[kept])
    except ValueError:
        kept = np.arange(len(x_PK))
        surface = fit_surface(x_PK, swept.losses)
    low, high = optimum_interval(x_PK[kept], swept.losses[kept], box, confidence, draws, seed)
    best, margin = surface.optimum(*box), (box[1] - box[0]) / 100
    full = swept.logs[0].copy()
    full[swept.varied] = best
    figures = {
        "learning_rate": float(np.exp(full[0])),
        "learning_rate_low": float(np.exp(low[0])),
        "learning_rate_high": float(np.exp(high[0])),
        "batch_sequences": float(np.exp(full[1])),
        "loss": float(surface(best[None])[0]),
        "inside": float(np.all((best > box[0] + margin) & (best < box[1] - margin))),
    }
    return SweepFit(surface, figures)
