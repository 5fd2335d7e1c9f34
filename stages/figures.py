"""Figures as SVG: the same numbers give the same bytes, whatever matplotlib's settings here are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import matplotlib
from matplotlib.figure import Figure

STYLE: Final[Mapping[str, Any]] = {
    "svg.hashsalt": "regraft",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
}
MAP_STYLE: Final[Mapping[str, Any]] = {"svg.hashsalt": "regraft", "font.size": 8}
"""Of heat maps: no grid over them, all four sides."""
COLOURS: Final = {"model": "#0969da", "baseline": "#8c959f"}


@contextmanager
def figure(file: Path, width: float, height: float, style: Mapping[str, Any] = STYLE) -> Iterator[Figure]:
    """A figure of `width` by `height` inches, written to `file` at the end."""
    with matplotlib.rc_context(dict(style)):
        made = Figure(figsize=(width, height), layout="constrained")
        yield made
        made.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
