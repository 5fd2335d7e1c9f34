"""Recipes in order, with what the order is worth: ties, intervals, agreement with larger runs. Pure numpy."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stages.proxy.agreement import kendall, pairwise_agreement, ranks, spearman, top_k_regret
from stages.proxy.noise import Noise, critical_gap, rank_intervals, seed_noise
from stages.proxy.table import Table


@dataclass(frozen=True)
class Ranking:
    """R recipes by one loss (a domain's, or the mean of all), in the order of the table."""

    losses: np.ndarray
    """[R] mean over the seeds."""
    ranks: np.ndarray
    """[R] from 1, the lowest loss."""
    low: np.ndarray
    high: np.ndarray
    """[R] the ranks that the seeds' noise leaves possible."""
    different: np.ndarray
    """[R, R] whether the gap is larger than seeds alone would make it."""
    noise: Noise

    @property
    def best(self) -> list[int]:
        """The recipe of the lowest loss, and those that are tied with it."""
        return [int(index) for index in np.flatnonzero(~self.different[int(self.losses.argmin())])]

    @property
    def tied_share(self) -> float:
        """Share of the pairs that are tied; 1 when no recipe has two seeds, since nothing is known of the noise."""
        first, second = np.triu_indices(len(self.losses), k=1)
        return float((~self.different[first, second]).mean()) if len(first) else 1.0


def rank_recipes(losses_RS: np.ndarray, counts_R: np.ndarray, confidence: float, draws: int, seed: int) -> Ranking:
    """The ranking that losses [R, S] (NaN where missing) give, ties where a gap is within the noise of the seeds."""
    losses_R, noise = np.nanmean(losses_RS, axis=1), seed_noise(losses_RS)
    low_R, high_R = rank_intervals(losses_RS, noise, confidence, draws, seed)
    gaps_RR = np.abs(losses_R[:, None] - losses_R[None, :])
    different_RR = gaps_RR > critical_gap(noise, counts_R, confidence, seed)
    return Ranking(losses_R, ranks(losses_R), low_R, high_R, different_RR, noise)


@dataclass(frozen=True)
class Agreement:
    """How far a table of proxies orders recipes as larger runs do, over the recipes that both have."""

    recipes: int
    spearman: float
    kendall: float
    pairwise: float
    regret: dict[int, float]
    """Loss of the larger model given away by trying only the proxies' best k recipes, by k."""


def agreement(table: Table, target: dict[str, float], most: int, domain: int | None = None) -> Agreement | None:
    """Agreement of `table` with the larger model's losses by recipe; None with fewer than two recipes in common."""
    common = [index for index, digest in enumerate(table.recipes) if digest in target]
    if len(common) < 2:
        return None
    proxy_R = table.means(domain)[common]
    target_R = np.array([target[table.recipes[index]] for index in common])
    regret = {k: top_k_regret(proxy_R, target_R, k) for k in range(1, min(most, len(common)) + 1)}
    return Agreement(
        len(common),
        spearman(proxy_R, target_R),
        kendall(proxy_R, target_R),
        pairwise_agreement(proxy_R, target_R),
        regret,
    )


def tuned(tables: list[Table], domain: int | None = None) -> dict[str, float]:
    """The loss of each recipe at the learning rate that is best for it by the mean of all domains, by digest."""
    best: dict[str, tuple[float, float]] = {}
    for table in tables:
        for digest, overall, loss in zip(table.recipes, table.means(), table.means(domain), strict=True):
            best[digest] = min(best.get(digest, (np.inf, np.inf)), (float(overall), float(loss)))
    return {digest: loss for digest, (_, loss) in best.items()}
