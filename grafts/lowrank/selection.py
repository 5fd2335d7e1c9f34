"""Which parts of a model to restore when not all of them can be: scores, a nested choice under a budget, and its knee.

GlowQ-S (arXiv 2603.25385) ranks groups of modules. A choice is a prefix of one order, so that the choice of a larger
budget holds that of a smaller one. The same functions choose which modules get more bits for the same bytes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Final, Literal

import torch
from torch import Tensor

from grafts.lowrank.glowq import Correction

Score = Literal[
    "energy_capture",
    "gain_per_byte",
    "error_drop",
    "normalised_error_ratio",
    "norm_error",
    "nuclear",
    "frobenius",
    "cosine",
    "layer_order",
]


@dataclass(frozen=True)
class Unit:
    """One group that may be restored: its stacked weight [O, I], the error of it, and its correction."""

    weight: Tensor
    error: Tensor
    correction: Correction
    position: int
    """Where it comes in the model, from 0."""
    power: float
    """||W S||^2, the mean squared output without any error, by the same roots as the correction's."""


def energy_capture(unit: Unit) -> float:
    """Share of the whitened error that the correction takes away (the paper's score); 0 where there is no error."""
    return error_drop(unit) / unit.correction.total if unit.correction.total > 0 else 0.0


def relative_gain(unit: Unit) -> float:
    """What the correction takes from the squared error, over the squared output; 0 where there is no output."""
    return error_drop(unit) / unit.power if unit.power > 0 else 0.0


def gain_per_byte(unit: Unit) -> float:
    """`relative_gain` for each number in the factors."""
    numbers = sum(factor.numel() for factor in (*unit.correction.left, unit.correction.right))
    return relative_gain(unit) / numbers if numbers else 0.0


def error_drop(unit: Unit) -> float:
    """What the correction takes from the mean squared error of the outputs: sum of the squared singular values."""
    return unit.correction.singular_values.square().sum().item()


def normalised_error_ratio(unit: Unit) -> float:
    """||E||^2 / ||W||^2 (the paper's NER); 0 for a weight of zeros."""
    return norm_error(unit) ** 2


def norm_error(unit: Unit) -> float:
    """||E|| / ||W||, not squared, as the official code has it."""
    norm = torch.linalg.vector_norm(unit.weight.double()).item()
    return frobenius(unit) / norm if norm > 0 else 0.0


def nuclear(unit: Unit) -> float:
    """Sum of the singular values: the code's "gsvd", there the squared norm of the left factors."""
    return unit.correction.singular_values.sum().item()


def frobenius(unit: Unit) -> float:
    """||E||."""
    return torch.linalg.vector_norm(unit.error.double()).item()


def cosine(unit: Unit) -> float:
    """1 - cosine of the angle between the weight and its quantised version."""
    weight, kept = unit.weight.double().flatten(), (unit.weight.double() - unit.error.double()).flatten()
    norms = weight.norm() * kept.norm()
    return 1 - (weight @ kept / norms).item() if norms > 0 else 0.0


def layer_order(unit: Unit) -> float:
    """Earlier layers first: the fallback."""
    return -float(unit.position)


SCORES: Final[Mapping[Score, Callable[[Unit], float]]] = {
    "energy_capture": energy_capture,
    "gain_per_byte": gain_per_byte,
    "error_drop": error_drop,
    "normalised_error_ratio": normalised_error_ratio,
    "norm_error": norm_error,
    "nuclear": nuclear,
    "frobenius": frobenius,
    "cosine": cosine,
    "layer_order": layer_order,
}


def ranked(scores: Sequence[float]) -> list[int]:
    """Indices by falling score; equal ones stay in their order. Raises ValueError for a score that is no number."""
    if any(math.isnan(score) for score in scores):
        raise ValueError(f"score {[math.isnan(score) for score in scores].index(True)} is not a number")
    return sorted(range(len(scores)), key=lambda index: -scores[index])


def choose(order: Sequence[int], sizes: Sequence[int], budget: int) -> list[int]:
    """The longest prefix of `order` whose `sizes` (bytes) sum to at most `budget`: nested as the budget grows."""
    totals = accumulate(sizes[index] for index in order)
    return list(order[: sum(total <= budget for total in totals)])


def cumulative(order: Sequence[int], values: Sequence[float]) -> list[float]:
    """Sums of `values` along `order`, from 0 for none restored to the whole."""
    return [0.0, *accumulate(float(values[index]) for index in order)]


def knee(costs: Sequence[float], gains: Sequence[float]) -> int:
    """Index where a curve of gains over rising costs is farthest above its chord (Kneedle, Satopaa et al. 2011).

    Both are scaled to 0 to 1 first. A curve that is nowhere above its chord has its knee at the end.
    """
    if len(costs) != len(gains) or not costs:
        raise ValueError(f"a curve needs as many costs as gains, got {len(costs)} and {len(gains)}")
    width, height = costs[-1] - costs[0], gains[-1] - gains[0]
    if width <= 0 or height <= 0:
        return len(costs) - 1
    above = [(gain - gains[0]) / height - (cost - costs[0]) / width for cost, gain in zip(costs, gains, strict=True)]
    best = max(range(len(above)), key=above.__getitem__)
    return best if above[best] > 1e-12 else len(costs) - 1
