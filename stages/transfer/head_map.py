"""Head maps drawn as SVG: a row for each layer, a column for each query head; the same numbers give the same bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from stages.figures import MAP_STYLE, figure
from stages.transfer.heads import HeadShape

Map = Sequence[Sequence[float]]
"""[L][H]"""

CHOSEN = "#d1242f"


def draw_scores(file: Path, shape: HeadShape, maps: Mapping[str, Map]) -> None:
    """Draw `maps` by title side by side, each with its own scale; vertical lines part the key-value groups."""
    with figure(file, *_size(shape, len(maps)), MAP_STYLE) as made:
        for axes, (title, values) in zip(made.subplots(1, len(maps), squeeze=False)[0], maps.items(), strict=True):
            _draw(axes, shape, values)
            axes.set_title(title, fontsize=9)
            made.colorbar(axes.collections[0], ax=axes, fraction=0.06, pad=0.03)


def draw_selection(file: Path, shape: HeadShape, full_heads: Sequence[Sequence[int]], scores: Map | None) -> None:
    """Draw which heads stay full attention, framed, over their `scores` where there are any."""
    with figure(file, *_size(shape, 1), MAP_STYLE) as made:
        axes = made.subplots()
        _draw(axes, shape, scores or [[0.0] * shape.num_heads for _ in range(shape.num_layers)])
        if scores:
            made.colorbar(axes.collections[0], ax=axes, fraction=0.06, pad=0.03, label="score")
        for layer, heads in enumerate(full_heads):
            for head in heads:
                axes.add_patch(Rectangle((head + 0.08, layer + 0.08), 0.84, 0.84, fill=False, edgecolor=CHOSEN, lw=1.3))
        axes.set_title(f"{sum(map(len, full_heads))} heads of full attention, framed", fontsize=9)


def _size(shape: HeadShape, num_maps: int) -> tuple[float, float]:
    width, height = 1.3 + 0.16 * shape.num_heads, 1.0 + 0.16 * shape.num_layers
    return max(2.6, width) * num_maps, max(2.0, height)


def _draw(axes: Axes, shape: HeadShape, values: Map) -> None:
    axes.pcolormesh(values, cmap="Blues", edgecolors="white", linewidth=0.5)
    for group in range(1, shape.num_groups):
        axes.axvline(group * shape.heads_per_group, color="#8c959f", linewidth=0.8)
    axes.invert_yaxis()
    for axis, count in ((axes.xaxis, shape.num_heads), (axes.yaxis, shape.num_layers)):
        places = range(0, count, 1 if count <= 12 else 2 if count <= 24 else 5)
        axis.set_ticks([place + 0.5 for place in places], [str(place) for place in places])
    axes.tick_params(length=0)
    axes.set(xlabel="query head", ylabel="layer")
