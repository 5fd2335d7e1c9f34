"""Figures of quantisation reports, as SVG: the same numbers give the same bytes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from matplotlib.axes import Axes

from stages.figures import COLOURS, figure

if TYPE_CHECKING:
    from stages.quantize.comparison import Setting

BASE_COLOURS: Final = {"RTN": "#0969da", "GPTQ": "#bf8700", "AWQ": "#1a7f37"}
MARKERS: Final = {"GlowQ": "^", "GlowQ-S": "v", "mixed bits": "s"}
"""By method; a base alone is a dot."""


def draw_restoration(file: Path, bytes_K: Sequence[float], gains_K: Sequence[float], knee: int, chosen: int) -> None:
    """Draw what K - 1 corrections take from the output error, one after another, over the bytes that they add.

    Both start at 0 for none. `knee` and `chosen` are the numbers of corrections at the knee and within the budget.
    """
    with figure(file, 7, 3.6) as drawn:
        axes = drawn.subplots()
        sizes, shares = [size / 2**20 for size in bytes_K], [gain / (gains_K[-1] or 1) for gain in gains_K]
        axes.plot(sizes, shares, color=COLOURS["model"])
        axes.plot((sizes[0], sizes[-1]), (shares[0], shares[-1]), color=COLOURS["baseline"], linestyle=":")
        axes.plot(sizes[knee], shares[knee], "o", color=COLOURS["model"], label=f"knee: {knee} groups")
        axes.axvline(sizes[chosen], color=COLOURS["baseline"], label=f"budget: {chosen} groups")
        axes.set(xlabel="added (MiB)", ylabel="share of the gain of all groups")
        axes.legend(frameon=False, loc="lower right")


def draw_front(file: Path, made: Sequence[Setting], best: Sequence[Setting]) -> None:
    """Draw mean perplexity over file size of every setting, the seeds' range as a bar, and the front as a line."""
    with figure(file, 7.5, 4.4) as drawn:
        axes = drawn.subplots()
        axes.plot(*_places(best), color=COLOURS["baseline"], drawstyle="steps-post", zorder=1, label="Pareto front")
        axes.axhline(made[0].mean("parent_perplexity"), color=COLOURS["baseline"], linestyle=":", label="parent")
        for each in made:
            _draw_setting(axes, each)
        axes.set(xlabel="file (MiB)", ylabel="perplexity", yscale="log")
        ticks = _ticks(*(each.mean("child_perplexity") for each in made), made[0].mean("parent_perplexity"))
        axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.minorticks_off()
        handles, labels = axes.get_legend_handles_labels()
        unique = dict(zip(labels, handles, strict=True))
        axes.legend(unique.values(), unique.keys(), frameon=False, fontsize=8)


def _draw_setting(axes: Axes, each: Setting) -> None:
    method, base = each.first.method, each.first.base
    (size,), (mean,) = _places([each])
    low, *_, high = seeds if len(seeds := each.all("child_perplexity")) > 1 else seeds * 2
    axes.errorbar(
        size,
        mean,
        yerr=[[max(0.0, mean - low)], [max(0.0, high - mean)]],  # a mean of equal numbers may be off by rounding
        fmt=MARKERS.get(method, "o"),
        markersize=5,
        color=BASE_COLOURS[base],
        label=base if method == base else f"{base}, {method}",
    )


def _places(made: Sequence[Setting]) -> tuple[list[float], list[float]]:
    return [each.mean("bytes_after") / 2**20 for each in made], [each.mean("child_perplexity") for each in made]


def _ticks(*values: float) -> list[float]:
    """Round numbers from below the least value to above the most, a factor of about 1.3 apart."""
    steps = [step * 10**power for power in range(-1, 8) for step in (1, 1.25, 1.5, 2, 2.5, 3, 4, 5, 6, 8)]
    inside = [step for step in steps if min(values) * 0.8 <= step <= max(values) * 1.25]
    return inside[:: max(1, len(inside) // 10)]
