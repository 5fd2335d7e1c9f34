"""The figure of a mixture: which experts the tokens of each domain go to."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes

from stages.figures import STYLE, figure

ANNOTATED_EXPERTS = 16
"""Experts up to which every cell has its number."""


def draw_heat_map(file: Path, domains: Sequence[str], panels: Sequence[tuple[str, Sequence[Sequence[float]]]]) -> None:
    """Draw `panels` of a title and shares [domain][expert], each row of which sums to 1, beside one another.

    All panels have one scale of colours, from an unused expert to the largest share.
    """
    largest = max(share for _, rows in panels for row in rows for share in row)
    widest = max(len(rows[0]) for _, rows in panels)
    width, height = 1.8 + len(panels) * max(2.4, 0.55 * widest), 1.5 + 0.45 * len(domains)
    with figure(file, width, height, {**STYLE, "axes.grid": False}) as made:
        for number, panel in enumerate(panels):
            axes = made.add_subplot(1, len(panels), number + 1)
            _draw(axes, domains if number == 0 else [""] * len(domains), *panel, largest)


def _draw(axes: Axes, domains: Sequence[str], title: str, rows: Sequence[Sequence[float]], largest: float) -> None:
    num_experts = len(rows[0])
    axes.imshow(rows, cmap="Blues", vmin=0, vmax=largest, aspect="auto")
    axes.set_title(title, fontsize=10)
    axes.set_xlabel("expert")
    axes.set_xticks(range(num_experts) if num_experts <= ANNOTATED_EXPERTS else [0, num_experts - 1])
    axes.set_yticks(range(len(domains)), labels=list(domains))
    if num_experts > ANNOTATED_EXPERTS:
        return
    for y, row in enumerate(rows):
        for x, share in enumerate(row):
            colour = "white" if share > 0.6 * largest else "black"
            axes.text(x, y, f"{share:.2f}", ha="center", va="center", fontsize=8, color=colour)
