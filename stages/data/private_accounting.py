"""How much noise a privacy budget asks for, and how much of the budget a run has spent, by two accountants of Opacus.

The mechanism is DP-SGD with Poisson sampling (arXiv 1607.00133): every document enters a step with probability q by
itself, its gradient is clipped to norm C, and noise of deviation sigma C is added to the sum. What holds for adding or
removing one document follows from q, sigma and the number of steps alone.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from stages.errors import StageError, UserError

NUMERIC: float = 0.02
"""How far above its target, or above the looser accountant, an epsilon may come out, as a share: what the numeric
accountant's own error bounds leave open."""

HALVINGS: int = 6
"""Of the interval that the noise is looked for in: half a percent is left."""

OTHER_RUN: str = "take other steps, batch_documents or delta; see `pip show opacus`: 1.5 or later is expected"
"""The fix where the accountants say nothing that can be believed."""

History = Sequence[tuple[float, float, int]]
"""Steps that were taken, as Opacus counted them: noise multiplier, sampling rate, and how many."""


@dataclass(frozen=True)
class Spent:
    """Epsilon at the run's delta: by privacy random variables (arXiv 2106.02848) and by Renyi (arXiv 1702.07476)."""

    prv: float
    rdp: float


def sampling_rate(count: int, expected: int) -> float:
    """Chance of each of `count` documents to be in a step of `expected` on average, as Opacus rounds it."""
    return 1 / math.ceil(count / expected)


def noise_for(epsilon: float, delta: float, sample_rate: float, steps: int) -> float:
    """The noise multiplier sigma that keeps `steps` steps within the budget. Raises UserError when none does.

    Renyi's accountant is quick and asks for too much; from there down, privacy random variables decide.
    """
    from opacus.accountants.utils import get_noise_multiplier

    try:
        with _quiet():
            high = get_noise_multiplier(
                target_epsilon=epsilon, target_delta=delta, sample_rate=sample_rate, steps=steps, accountant="rdp"
            )
    except ValueError as error:
        raise UserError(
            f"no noise keeps {steps} steps at sampling rate {sample_rate:.3g} within epsilon {epsilon:g} at delta "
            f"{delta:.3g}: {error}",
            fix="take fewer steps, a smaller `batch_documents`, or a larger `epsilon`",
        ) from None
    low = 0.7 * high
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        within = _ran([(middle, sample_rate, steps)], delta).prv <= epsilon
        low, high = (low, middle) if within else (middle, high)
    return float(high)


def spent(history: History, delta: float) -> Spent:
    """What the steps in `history` have spent, by both accountants. Raises what they raise."""
    from opacus.accountants import create_accountant

    found = {}
    with _quiet():
        for mechanism in ("prv", "rdp"):
            accountant = create_accountant(mechanism)
            accountant.history = list(history)
            found[mechanism] = float(accountant.get_epsilon(delta=delta))
    return Spent(**found)


def account(history: History, delta: float, target: float) -> Spent:
    """`spent`, believed. Raises StageError, so that nothing is published, when the accountants did not run, gave no
    number, contradict each other, or tell more than `target`.
    """
    found = _ran(history, delta)
    if not (math.isfinite(found.prv) and math.isfinite(found.rdp) and found.prv >= 0):
        raise StageError(
            f"the accountants give epsilon {found.prv} and {found.rdp}: nothing is published", fix=OTHER_RUN
        )
    if found.prv > found.rdp * (1 + NUMERIC):
        raise StageError(
            f"the accountants contradict each other: {found.prv:.4g} by privacy random variables exceeds the upper "
            f"bound {found.rdp:.4g} by Renyi divergences; nothing is published",
            fix=OTHER_RUN,
        )
    if found.prv > target * (1 + NUMERIC):
        raise StageError(
            f"epsilon {found.prv:.4g} was spent, the budget is {target:g}: nothing is published",
            fix=f"take fewer steps or a smaller batch_documents, or set epsilon to {found.prv:.4g} or more",
        )
    return found


def _ran(history: History, delta: float) -> Spent:
    try:
        return spent(history, delta)
    except Exception as error:
        raise StageError(
            f"the accountant could not run ({type(error).__name__}: {error}), so nothing can be said of privacy and "
            "nothing is published",
            fix="see `pip show opacus`: 1.5 or later is expected",
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Opacus warns of orders at the end of its list and of logarithms of 0: the second accountant covers both."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"opacus\.")
        yield
