"""Step Law: the learning rate and the batch that are best for a model of N parameters and D tokens (arXiv 2503.04715).

    learning rate = 1.79 N^-0.713 D^0.307        batch = 0.58 D^0.571 tokens

N counts parameters outside the embeddings. The law was fitted to language models trained from scratch with AdamW, on a
cosine that ends at a learning rate of 1e-5, in windows of 2048 tokens. Pure numpy.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Final

import numpy as np


@dataclass(frozen=True)
class Law:
    """`rate_factor` N^`rate_parameters` D^`rate_tokens`, and `batch_factor` D^`batch_tokens`, with where they hold.

    A law of sweeps that did not vary the batch tells none.
    """

    rate_factor: float
    rate_parameters: float
    rate_tokens: float
    batch_factor: float | None
    batch_tokens: float | None
    parameters_range: tuple[float, float]
    tokens_range: tuple[float, float]

    def learning_rate(self, parameters: float, tokens: float) -> float:
        """The best peak learning rate; no range is checked."""
        return self.rate_factor * parameters**self.rate_parameters * tokens**self.rate_tokens

    def batch(self, tokens: float) -> float | None:
        """The best batch in tokens, None where the law tells none; no range is checked."""
        if self.batch_factor is None or self.batch_tokens is None:
            return None
        return self.batch_factor * tokens**self.batch_tokens


STEP_LAW: Final = Law(1.79, -0.713, 0.307, 0.58, 0.571, (6e7, 1e9), (2e9, 1e11))
"""As published, with the range of the models that it was fitted to."""


def clamped(value: float, allowed: tuple[float, float]) -> float:
    """`value`, or the nearer end of the range."""
    return min(max(value, allowed[0]), allowed[1])


def whole_sequences(batch_tokens: float, sequence_length: int) -> int:
    """Sequences in a batch of about that many tokens, at least one."""
    return max(1, round(batch_tokens / sequence_length))


@dataclass(frozen=True)
class Cell:
    """The optimum that a sweep found at one size and one budget."""

    parameters: float
    tokens: float
    learning_rate: float
    batch_tokens: float | None
    """None for a sweep that did not vary the batch."""


@dataclass(frozen=True)
class Fit:
    """A fitted law, with an interval [low, high] for each of its coefficients by name."""

    law: Law
    intervals: dict[str, tuple[float, float]]


RATE: Final = ("rate_factor", "rate_parameters", "rate_tokens")
BATCH: Final = ("batch_factor", "batch_tokens")


def fit_law(cells: list[Cell], confidence: float, draws: int, seed: int) -> Fit:
    """Least squares in the logarithms, and a bootstrap over the cells; of the batch when every cell has one.

    Draws in which sizes or budgets do not vary enough to tell the exponents are drawn again. Raises ValueError when
    that is so of the cells themselves.
    """
    if any(cell.batch_tokens is None for cell in cells):
        cells = [replace(cell, batch_tokens=None) for cell in cells]
    found = _coefficients(cells)
    if found is None:
        raise ValueError("the exponents cannot be told apart: sizes and token budgets must vary, not only together")
    rng, drawn = np.random.default_rng(seed), []
    while len(drawn) < draws:
        sample = _coefficients([cells[index] for index in rng.integers(0, len(cells), len(cells))])
        drawn += [] if sample is None else [sample]
    tail = (1 - confidence) / 2
    low, high = np.quantile(np.array(drawn), [tail, 1 - tail], axis=0)
    parameters, tokens = ([getattr(cell, name) for cell in cells] for name in ("parameters", "tokens"))
    told = dict(zip((*RATE, *BATCH), found, strict=False))
    ranges = {
        "parameters_range": (min(parameters), max(parameters)),
        "tokens_range": (min(tokens), max(tokens)),
    }
    law = Law(**{**dict.fromkeys(BATCH), **told, **ranges})
    return Fit(law, {name: (float(low[i]), float(high[i])) for i, name in enumerate(told)})


def _coefficients(cells: list[Cell]) -> tuple[float, ...] | None:
    """Those of the rate, then those of the batch if the cells have one; None when the cells do not decide them."""
    log_n, log_d = (np.log([getattr(cell, name) for cell in cells]) for name in ("parameters", "tokens"))
    design = np.stack([np.ones(len(cells)), log_d, log_n], 1)
    if np.linalg.matrix_rank(design) < 3:
        return None
    rate = np.linalg.lstsq(design, np.log([cell.learning_rate for cell in cells]), rcond=None)[0]
    found = math.exp(rate[0]), float(rate[2]), float(rate[1])
    batches = [cell.batch_tokens for cell in cells if cell.batch_tokens is not None]
    if len(batches) < len(cells):
        return found
    batch = np.linalg.lstsq(design[:, :2], np.log(batches), rcond=None)[0]
    return *found, math.exp(batch[0]), float(batch[1])
