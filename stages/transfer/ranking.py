"""From effects to one score a head, and what the scores look like as a whole (arXiv 2606.20097, equations 11 and 12).

Shapes: L layers, H heads of a layer, S sub-probes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def consistency(effects: Sequence[Tensor], threshold: float) -> Tensor:
    """κ [L, H]: the share of the sub-probes in which the largest of a head's `effects` [S, L, H] tops `threshold`."""
    return (largest(effects) > threshold).double().mean(0)


def capability_score(effects: Sequence[Tensor], threshold: float) -> Tensor:
    """Equation 11 [L, H]: the largest of a head's mean `effects` [S, L, H], times its κ. Nothing is clipped.

    `effects` are the received one, and the sent one of each round.
    """
    return largest([effect_SLH.mean(0) for effect_SLH in effects]) * consistency(effects, threshold)


def largest(effects: Sequence[Tensor]) -> Tensor:
    """The largest of several tensors, place by place."""
    return torch.stack(list(effects)).amax(0)


def combined(scores_CLH: Tensor) -> Tensor:
    """Equation 12 [L, H]: each capability's scores stretched to 0 … 1 over all heads, then averaged."""
    low, high = scores_CLH.amin((1, 2), keepdim=True), scores_CLH.amax((1, 2), keepdim=True)
    width = torch.where(high > low, high - low, torch.ones_like(high))
    return ((scores_CLH - low) / width).mean(0)


def grouped(scores_LH: Tensor, num_groups: int) -> dict[str, Tensor]:
    """The largest and the summed score of the heads that share a key-value head: `max` and `sum`, [L, G]."""
    by_group_LGR = scores_LH.unflatten(1, (num_groups, -1))
    return {"max": by_group_LGR.amax(-1), "sum": by_group_LGR.sum(-1)}


def mean_gini(scores_LH: Tensor) -> float:
    """Mean over layers of the Gini coefficient of their heads' scores (none negative); all-zero layers do not count.

    0 where all heads of a layer are alike, (H - 1) / H where one has everything; 0.0 when no layer counts.
    """
    ascending_LH = scores_LH.double().sort(dim=1).values
    num_heads, totals_L = scores_LH.shape[1], ascending_LH.sum(1)
    factors_H = 2 * torch.arange(1, num_heads + 1, dtype=torch.float64) - num_heads - 1
    uneven_L = (ascending_LH * factors_H).sum(1) / (num_heads * totals_L)
    counted_L = uneven_L[totals_L > 0]
    return float(counted_L.mean()) if len(counted_L) else 0.0


def spearman(one: Tensor, two: Tensor) -> float:
    """Rank correlation of two tensors of one shape, equal values sharing their rank; 0.0 when either is constant."""
    ranks = torch.stack([_ranks(one.flatten().double()), _ranks(two.flatten().double())])
    centred = ranks - ranks.mean(1, keepdim=True)
    lengths = centred.norm(dim=1)
    return float(centred[0] @ centred[1] / lengths.prod()) if lengths.prod() > 0 else 0.0


def overlap(one: Tensor, two: Tensor, share: float) -> float:
    """Of the best `share` of all heads by either score, the part that both name (Jaccard); ties by place."""
    count = max(1, round(share * one.numel()))
    best = [set(scores.flatten().argsort(descending=True, stable=True)[:count].tolist()) for scores in (one, two)]
    return len(best[0] & best[1]) / len(best[0] | best[1])


def _ranks(values_N: Tensor) -> Tensor:
    _, places_N, counts_U = values_N.unique(return_inverse=True, return_counts=True)
    return (counts_U.cumsum(0).double() - (counts_U - 1) / 2)[places_N]
