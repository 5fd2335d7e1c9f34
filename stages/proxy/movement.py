"""Whether training moved a proxy far enough to tell recipes apart.

At a fixed number of steps a learning rate can be too small as well as too large: the loss then shows how fast each
recipe's first gradient steps are, which says nothing of where they lead (an inverted U, and in simulation a correlation
of zero at its left end). So a table whose losses hardly fell is not ranked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from stages.proxy.table import Table, siblings


@dataclass(frozen=True)
class Movement:
    """How far the losses of one table fell, medians over its recipes."""

    fall: float
    """Of the initial loss, as a share of it; negative when training made it worse."""
    share: float
    """Of the largest fall at any learning rate that was given for the same proxies, as a share of it."""

    @classmethod
    def of(cls, table: Table, tables: Sequence[Table]) -> Movement:
        """The movement of `table`, its siblings among `tables` being the other learning rates."""
        initial = float(np.nanmean(table.initials()))
        fall = float(np.median(initial - table.means()))
        largest = max(float(np.median(np.nanmean(t.initials()) - t.means())) for t in siblings(table, tables))
        return cls(fall / initial, fall / largest if largest > 0 else 0.0)


def refusal(table: Table, moved: Movement, least_fall: float, least_share: float) -> str:
    """Why `table` cannot be ranked, with what to try; "" when it can, and when nothing is asked of it (both 0)."""
    run = table.first
    if least_fall == least_share == 0:
        return ""
    if moved.fall <= 0:
        return f"the loss rose ({-moved.fall:.1%} above initialisation): {run.learning_rate:.3g} is too high"
    short = max(least_fall / moved.fall, least_share / moved.share if moved.share > 0 else np.inf)
    if short <= 1:
        return ""
    found = (
        f"{moved.fall:.1%} of its initial value, expected {least_fall:.1%}"
        if least_fall / moved.fall >= least_share / moved.share
        else f"{moved.share:.0%} of what it falls at the best learning rate, expected {least_share:.0%}"
    )
    return (
        f"the loss has barely moved from initialisation: it fell by {found}. Far from the end, it falls by learning "
        f"rate times steps: try {run.learning_rate * short:.2g}, or {short:.2g} times the tokens"
    )
