"""Figures of evaluation reports, as SVG: the same numbers give the same bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from stages.figures import COLOURS, figure

PANELS = {
    "prefill_seconds": "prefill (s)",
    "decode_tokens_per_second": "decode (tokens/s)",
    "cache_bytes": "cache (MiB)",
    "peak_bytes": "peak memory (MiB)",
}


def draw_layers(file: Path, cosine_L: Sequence[float]) -> None:
    """Draw the mean cosine of both models' hidden states at each layer; entry 0 is the embeddings."""
    with figure(file, 7, 3.2) as made:
        axes = made.subplots()
        axes.plot(range(len(cosine_L)), cosine_L, marker="o", markersize=4, color=COLOURS["model"])
        axes.set(xlabel="layer (0: embeddings)", ylabel="cosine to parent", ylim=(min(0.0, *cosine_L), 1.02))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def draw_speed(file: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Draw prefill, decode, cache and peak memory of both models over context length, from a speed report's `lengths`.

    Lines are medians, bands run from minimum to maximum.
    """
    with figure(file, 7, 5.4) as made:
        for axes, (key, title) in zip(made.subplots(2, 2).flat, PANELS.items(), strict=True):
            for name, colour in COLOURS.items():
                _line(axes, rows, name, key, colour)
            _label(axes, title, [row["context_length"] for row in rows])
        made.axes[0].legend(frameon=False)


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
