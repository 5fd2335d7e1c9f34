"""Figures of quantisation reports, as SVG: the same numbers give the same bytes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from stages.evaluate.figures import COLOURS, STYLE


def draw_restoration(file: Path, bytes_K: Sequence[float], gains_K: Sequence[float], knee: int, chosen: int) -> None:
    """Draw what K - 1 corrections take from the output error, one after another, over the bytes that they add.

    Both start at 0 for none. `knee` and `chosen` are the numbers of corrections at the knee and within the budget.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7, 3.6), layout="constrained")
        axes = figure.subplots()
        sizes, shares = [size / 2**20 for size in bytes_K], [gain / (gains_K[-1] or 1) for gain in gains_K]
        axes.plot(sizes, shares, color=COLOURS["model"])
        axes.plot((sizes[0], sizes[-1]), (shares[0], shares[-1]), color=COLOURS["baseline"], linestyle=":")
        axes.plot(sizes[knee], shares[knee], "o", color=COLOURS["model"], label=f"knee: {knee} groups")
        axes.axvline(sizes[chosen], color=COLOURS["baseline"], label=f"budget: {chosen} groups")
        axes.set(xlabel="added (MiB)", ylabel="share of the gain of all groups")
        axes.legend(frameon=False, loc="lower right")
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
