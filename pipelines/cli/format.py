"""Numbers as people read them in tables."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

from pipelines.running.result import MARKS, State
from pipelines.spec.quantities import format_bytes, format_duration

LEADING: Final = (
    "success",
    "f1",
    "score",
    "reward",
    "perplexity",
    "bits_per_byte",
    "kl_to_parent",
    "perplexity_ratio",
    "top1_agreement",
    "loss",
)

STYLES: Final[Mapping[State, str]] = {
    "waiting": "dim",
    "running": "cyan",
    "done": "green",
    "cached": "blue",
    "kept": "yellow",
    "left": "dim",
    "failed": "red",
    "skipped": "yellow",
    "cancelled": "yellow",
}
SHOWN: Final = {state: (MARKS[state], style) for state, style in STYLES.items()}
"""How each state of a stage is shown: mark and style."""


def format_metric(name: str, value: float) -> str:
    """A metric's value; names that end in `bytes` or `seconds` are shown in their units."""
    if math.isnan(value):
        return "nan"
    if name.endswith("bytes"):
        return format_bytes(value)
    if name.endswith("seconds"):
        return format_duration(value)
    if abs(value) >= 1e6:
        return f"{value / 1e6:,.1f} M"
    if abs(value) >= 10_000 or (value == int(value) and abs(value) >= 1):
        return f"{value:,.0f}"
    return f"{value:.4g}"


def format_metrics(metrics: Mapping[str, float], most: int = 3) -> str:
    """The metrics that matter most, on one line."""
    names = [name for name in LEADING if name in metrics] or list(metrics)
    return ", ".join(f"{name} {format_metric(name, metrics[name])}" for name in names[:most])
