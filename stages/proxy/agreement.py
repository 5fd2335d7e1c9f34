"""How far two orders of the same recipes agree, and what following the wrong one costs. Pure numpy.

Losses come as float arrays [R] in one order of R recipes; lower is better. Ties count half, as is usual.
"""

from __future__ import annotations

import numpy as np


def ranks(losses_R: np.ndarray) -> np.ndarray:
    """Rank of each recipe from 1, the lowest loss first; equal losses share the mean of their ranks."""
    below_R = (losses_R[None, :] < losses_R[:, None]).sum(1)
    equal_R = (losses_R[None, :] == losses_R[:, None]).sum(1)
    return below_R + (equal_R + 1) / 2


def spearman(a_R: np.ndarray, b_R: np.ndarray) -> float:
    """Correlation of the ranks, -1 to 1; NaN when one of them ranks nothing (all equal)."""
    x_R, y_R = (ranks(values) - (len(values) + 1) / 2 for values in (a_R, b_R))
    scale = np.sqrt((x_R @ x_R) * (y_R @ y_R))
    return float(x_R @ y_R / scale) if scale else float("nan")


def kendall(a_R: np.ndarray, b_R: np.ndarray) -> float:
    """Kendall's tau-b: pairs in the same order less pairs in opposite order, over the pairs that are no ties."""
    signs_P, others_P = _pair_signs(a_R), _pair_signs(b_R)
    scale = np.sqrt(np.abs(signs_P).sum() * np.abs(others_P).sum())
    return float(signs_P @ others_P / scale) if scale else float("nan")


def pairwise_agreement(a_R: np.ndarray, b_R: np.ndarray) -> float:
    """Share of the pairs of recipes that both put in the same order, 0 to 1; a tie in one of them counts half."""
    return float((1 + _pair_signs(a_R) * _pair_signs(b_R)).mean() / 2)


def top_k_regret(proxy_R: np.ndarray, target_R: np.ndarray, k: int) -> float:
    """Loss given away by trying only the `k` recipes that the proxy likes best: best target loss among them, less the
    best of all. At least 0; 0 when the best recipe is among them. Of equal proxy losses the worst case is taken.
    """
    order = np.lexsort((-target_R, proxy_R))
    return float(target_R[order[:k]].min() - target_R.min())


def _pair_signs(values_R: np.ndarray) -> np.ndarray:
    first, second = np.triu_indices(len(values_R), k=1)
    return np.sign(values_R[first] - values_R[second])
