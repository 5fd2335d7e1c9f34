"""Figures of evaluation reports, as SVG: the same numbers give the same bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

STYLE = {
    "svg.hashsalt": "regraft",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
}
COLOURS = {"model": "#0969da", "baseline": "#8c959f"}
PANELS = {
    "prefill_seconds": "prefill (s)",
    "decode_tokens_per_second": "decode (tokens/s)",
    "cache_bytes": "cache (MiB)",
    "peak_bytes": "peak memory (MiB)",
}


def draw_layers(file: Path, cosine_L: Sequence[float]) -> None:
    """Draw the mean cosine of both models' hidden states at each layer; entry 0 is the embeddings."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7, 3.2), layout="constrained")
        axes = figure.subplots()
        axes.plot(range(len(cosine_L)), cosine_L, marker="o", markersize=4, color=COLOURS["model"])
        axes.set(xlabel="layer (0: embeddings)", ylabel="cosine to parent", ylim=(min(0.0, *cosine_L), 1.02))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        _save(figure, file)


def draw_speed(file: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Draw prefill, decode, cache and peak memory of both models over context length, from a speed report's `lengths`.

    Lines are medians, bands run from minimum to maximum.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7, 5.4), layout="constrained")
        for axes, (key, title) in zip(figure.subplots(2, 2).flat, PANELS.items(), strict=True):
            for name, colour in COLOURS.items():
                _line(axes, rows, name, key, colour)
            _label(axes, title, [row["context_length"] for row in rows])
        figure.axes[0].legend(frameon=False)
        _save(figure, file)


def _line(axes: Axes, rows: Sequence[Mapping[str, Any]], name: str, key: str, colour: str) -> None:
    lengths = [row["context_length"] for row in rows]
    values = [row[name][key] for row in rows]
    if key.endswith("_bytes"):
        axes.plot(lengths, [value / 2**20 for value in values], marker="o", markersize=4, color=colour, label=name)
        return
    axes.plot(lengths, [value["median"] for value in values], marker="o", markersize=4, color=colour, label=name)
    low, high = ([value[end] for value in values] for end in ("min", "max"))
    axes.fill_between(lengths, low, high, color=colour, alpha=0.2, linewidth=0)


def _label(axes: Axes, title: str, lengths: Sequence[int]) -> None:
    axes.set_title(title, fontsize=10)
    axes.set_xlabel("context (tokens)")
    axes.set_ylim(bottom=0)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_xticks(list(lengths))
    axes.xaxis.set_minor_locator(NullLocator())


def _save(figure: Figure, file: Path) -> None:
    figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
