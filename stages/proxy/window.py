"""Between which learning rates a proxy can be trusted, from short runs at rates a constant factor apart. Pure numpy.

The argument for small learning rates is that training then follows the gradient flow: where it goes depends on rate
times steps alone, and noise and curvature, which depend on the rate itself, fall away. That can be seen: a run at rate
r after n steps and one at r / k after k n steps stand at the same loss where it holds, and apart where it does not. The
highest rate at which they agree is the upper end of the window. The lower end is where rate times steps of the runs to
come still makes the loss fall far enough to show more than the first gradients.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Probes:
    """Held-out losses of short runs at rates [K], rising by the factor `ratio`, all from the loss `initial`."""

    rates: np.ndarray
    early: np.ndarray
    """[K] after 1 / `ratio` of the steps."""
    late: np.ndarray
    """[K] after all of them."""
    initial: float
    ratio: int

    def drift_error(self) -> np.ndarray:
        """How far each run but the first [K - 1] is from the one before at equal rate times steps: the gap in loss, as
        a share of how far the slower one has fallen.
        """
        fallen = np.maximum(self.initial - self.late[:-1], np.finfo(float).tiny)
        return np.abs(self.early[1:] - self.late[:-1]) / fallen


@dataclass(frozen=True)
class Window:
    """What the probes come to."""

    best: float
    """The rate of the lowest loss: the standard one, for runs as short as the probes."""
    lowest: float
    highest: float

    @property
    def suggested(self) -> float:
        """The middle of the window on a logarithmic scale; its upper end where it is empty."""
        return float(np.sqrt(self.lowest * self.highest)) if self.lowest < self.highest else self.highest


def find_window(probes: Probes, longer: float, tolerance: float, least_share: float) -> Window:
    """The window for runs whose sum of learning rates is `longer` times that of a probe at the same peak.

    `tolerance` bounds the drift error, `least_share` the fall as a share of the best probe's. A rate whose slower
    neighbour did not fall by a fiftieth of the best is not judged: there is nothing to compare yet. Raises ValueError
    when the loss falls at no rate.
    """
    best = int(np.argmin(probes.late))
    falls = probes.initial - probes.late
    if falls[best] <= 0:
        raise ValueError(
            f"the loss falls at none of the learning rates {probes.rates[0]:.3g} to {probes.rates[-1]:.3g}: from "
            f"{probes.initial:.4g} to {probes.late[best]:.4g} at best"
        )
    judged = falls[:-1] > falls[best] / 50
    agrees = ~judged | (probes.drift_error() <= tolerance)
    last = int(np.argmin(agrees)) if not agrees.all() else len(agrees)
    return Window(
        best=_parabola(probes, best),
        lowest=_rate_of_fall(probes.rates[: best + 1], falls[: best + 1], least_share * falls[best]) / longer,
        highest=float(probes.rates[last]),
    )


def _rate_of_fall(rates: np.ndarray, falls: np.ndarray, wanted: float) -> float:
    """The rate at which the loss falls by `wanted`, between the probes on a logarithmic scale."""
    above = int(np.argmax(falls >= wanted))
    if above == 0:
        return float(rates[0])
    share = (wanted - falls[above - 1]) / (falls[above] - falls[above - 1])
    return float(np.exp(np.interp(share, [0, 1], np.log(rates[above - 1 : above + 1]))))


def _parabola(probes: Probes, best: int) -> float:
    """The rate at the bottom of a parabola through the best probe and its neighbours; the best one at the ends."""
    if best in (0, len(probes.rates) - 1):
        return float(probes.rates[best])
    left, middle, right = probes.late[best - 1 : best + 2]
    shift = (left - right) / (2 * (left - 2 * middle + right)) if left + right > 2 * middle else 0.0
    return float(probes.rates[best] * probes.ratio ** np.clip(shift, -1, 1))
