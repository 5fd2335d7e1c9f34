"""What seeds alone do to the loss of a recipe, and which gaps between recipes are larger than that. Pure numpy.

The losses of one setting are a table [R, S] of R recipes by S seeds, NaN where a pair was not trained. Seeds share the
initial weights and the order of the data, so a seed that every recipe has adds the same to all of them: with a full
table that part is taken out, since it cancels in every gap. The noise is one figure for all recipes (their pooled
deviation), which is all that two or three seeds can tell.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

DRAWS = 20_000
"""Of each simulation: two digits of a 95th percentile."""


@dataclass(frozen=True)
class Noise:
    """The standard deviation that a seed gives to a loss, and what it rests on."""

    deviation: float
    """Nats a token; NaN when no recipe has two seeds."""
    freedom: int
    """Degrees of freedom; 0 when no recipe has two seeds."""
    residuals: np.ndarray
    """[freedom or more] what is left of each loss without its recipe (and its seed), scaled to `deviation`."""


def seed_noise(losses_RS: np.ndarray) -> Noise:
    """The pooled noise of a table [R, S] with NaN for what is missing."""
    present = ~np.isnan(losses_RS)
    residuals_RS = losses_RS - np.nanmean(losses_RS, axis=1, keepdims=True)
    num_recipes, num_seeds = losses_RS.shape
    if present.all() and num_recipes > 1:
        residuals_RS = residuals_RS - residuals_RS.mean(0)
        freedom = (num_recipes - 1) * (num_seeds - 1)
    else:
        freedom = int((present.sum(1) - 1).sum())
    if freedom < 1:
        return Noise(float("nan"), 0, np.zeros(0))
    repeated = present & (present.sum(1, keepdims=True) > 1)
    found = residuals_RS[repeated]
    deviation = float(np.sqrt((found**2).sum() / freedom))
    return Noise(deviation, freedom, found * np.sqrt(len(found) / freedom))


def critical_gap(noise: Noise, counts_R: np.ndarray, confidence: float, seed: int) -> np.ndarray:
    """Gaps [R, R] between mean losses that seeds alone would not exceed anywhere in the table, with `confidence`.

    Tukey's range test with as many seeds as each recipe has (`counts_R`), its quantile simulated: with R recipes all
    alike, the chance that any pair is called different is 1 - `confidence`. Infinite without a measured noise.
    """
    num_recipes = len(counts_R)
    if not noise.freedom:
        return np.full((num_recipes, num_recipes), np.inf)
    rng = np.random.default_rng(seed)
    means_DR = rng.standard_normal((DRAWS, num_recipes)) / np.sqrt(counts_R)
    spread_D = np.sqrt(rng.chisquare(noise.freedom, DRAWS) / noise.freedom)
    scale_RR = np.sqrt(1 / counts_R[:, None] + 1 / counts_R[None, :])
    widest_D = np.zeros(DRAWS)
    for first in range(num_recipes):
        gaps_DR = np.abs(means_DR - means_DR[:, first : first + 1]) / scale_RR[first]
        widest_D = np.maximum(widest_D, gaps_DR.max(1))
    return float(np.quantile(widest_D / spread_D, confidence)) * noise.deviation * scale_RR


def rank_intervals(
    losses_RS: np.ndarray, noise: Noise, confidence: float, draws: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Lowest and highest rank [R] of each recipe with `confidence`, by a bootstrap of the seeds' pooled residuals.

    Without a measured noise every rank is possible: 1 and R.
    """
    num_recipes, means_R = len(losses_RS), np.nanmean(losses_RS, axis=1)
    if not noise.freedom:
        return np.ones(num_recipes), np.full(num_recipes, float(num_recipes))
    rng, counts_R = np.random.default_rng(seed), (~np.isnan(losses_RS)).sum(1)
    drawn_DR = np.stack([rng.choice(noise.residuals, (draws, count)).mean(1) for count in counts_R], axis=1)
    ranks_DR = (means_R + drawn_DR).argsort(1).argsort(1) + 1
    tail = (1 - confidence) / 2
    return np.quantile(ranks_DR, tail, axis=0, method="lower"), np.quantile(ranks_DR, 1 - tail, axis=0, method="higher")
