"""Figures of proxies, as SVG: the same numbers give the same bytes."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from stages.figures import figure

if TYPE_CHECKING:
    from stages.proxy.ranking import Ranking
    from stages.proxy.record import Trained
    from stages.proxy.table import Table

COLOURS = ("#0969da", "#bf8700", "#1a7f37", "#cf222e", "#8250df", "#57606a", "#bc4c00", "#1b7c83", "#bf3989", "#6e7781")
Line = tuple[Sequence[float], Sequence[float]]
"""Points: learning rates, and the loss at each."""


def draw_domains(file: Path, trained: Trained) -> None:
    """Draw the held-out loss of each domain over the steps of one proxy."""
    with figure(file, 6, 3.4) as made:
        axes = made.subplots()
        for domain, colour in zip(trained.domains, itertools.cycle(COLOURS)):
            steps, losses = zip((0, domain.initial), *domain.curve, strict=True)
            axes.plot(steps, losses, marker="o", markersize=3, color=colour, label=domain.name)
        axes.set(xlabel="step", ylabel="held-out loss (nats/token)")
        axes.legend(frameon=False, fontsize=8)


def draw_curves(file: Path, tables: Sequence[Table]) -> None:
    """Draw the mean held-out loss of each recipe over the steps, one panel a setting, seeds as thin lines."""
    colours = _recipe_colours(tables)
    with figure(file, 1.2 + 3.4 * len(tables), 3.6) as made:
        for axes, table in zip(made.subplots(1, len(tables), squeeze=False)[0], tables, strict=True):
            for run in table.runs:
                steps, losses = zip(*run.curve, strict=True)
                axes.plot(steps, losses, linewidth=0.9, color=colours[run.digest])
            axes.set_title(table.label, fontsize=10)
            axes.set(xlabel="step", ylabel="held-out loss (nats/token)")
        _recipe_legend(made, tables, colours)


def draw_ranks(file: Path, tables: Sequence[Table], rankings: Sequence[Ranking]) -> None:
    """Draw the loss of each recipe in each ranked setting: a dot a seed, a bar for the mean, the best at the top."""
    with figure(file, 1.6 + 3.4 * len(tables), 1 + 0.3 * max(len(t.recipes) for t in tables)) as made:
        panels = made.subplots(1, len(tables), squeeze=False)[0]
        for axes, table, ranking in zip(panels, tables, rankings, strict=True):
            _draw_ranking(axes, table, ranking)


def draw_agreement(file: Path, tables: Sequence[Table], target: Mapping[str, float]) -> None:
    """Draw the larger model's loss over the proxies' loss, a dot a recipe, one panel a setting."""
    colours = _recipe_colours(tables)
    with figure(file, 1.2 + 3 * len(tables), 3.4) as made:
        for axes, table in zip(made.subplots(1, len(tables), squeeze=False)[0], tables, strict=True):
            for digest, loss in zip(table.recipes, table.means(), strict=True):
                if digest in target:
                    axes.plot(loss, target[digest], "o", color=colours[digest])
            axes.set_title(table.label, fontsize=10)
            axes.set(xlabel="proxy (nats/token)", ylabel="larger model, tuned (nats/token)")
        _recipe_legend(made, tables, colours)


def draw_rates(
    file: Path,
    lines: Mapping[str, Line],
    marks: Mapping[str, float],
    band: Sequence[float] = (),
    curves: Mapping[str, Line] | None = None,
) -> None:
    """Draw losses over learning rates: `lines` of (rates, losses), vertical `marks`, a shaded `band` of two rates, and
    under the names of lines the `curves` that were fitted to their points.
    """
    with figure(file, 6, 3.4) as made:
        axes = made.subplots()
        for (name, (rates, losses)), colour in zip(lines.items(), itertools.cycle(COLOURS)):
            axes.plot(rates, losses, "o" if curves else "o-", markersize=4, color=colour, label=name)
            if curves:
                axes.plot(*curves[name], color=colour, linewidth=1)
        for (name, rate), style in zip(marks.items(), itertools.cycle(("--", ":"))):
            axes.axvline(rate, linestyle=style, color="#57606a", label=name)
        if len(band) == 2:
            axes.axvspan(*band, color="#1a7f37", alpha=0.15, linewidth=0, label="window")
        losses = [loss for _, losses in lines.values() for loss in losses]
        margin = 0.1 * (max(losses) - min(losses)) or 0.1
        axes.set(xscale="log", xlabel="learning rate", ylabel="held-out loss (nats/token)")
        axes.set_ylim(min(losses) - margin, max(losses) + margin)
        axes.legend(frameon=False, fontsize=8)


def _draw_ranking(axes: Axes, table: Table, ranking: Ranking) -> None:
    order, losses_RS, best = np.argsort(ranking.losses, kind="stable"), table.finals(), set(ranking.best)
    for place, index in enumerate(order):
        seeds = losses_RS[index][~np.isnan(losses_RS[index])]
        colour = COLOURS[0] if index in best else COLOURS[5]
        axes.plot(seeds, [place] * len(seeds), "o", markersize=4, color=colour, alpha=0.6)
        axes.plot([ranking.losses[index]], [place], "|", markersize=14, color=colour)
    axes.set_yticks(range(len(order)), labels=[table.names[index] for index in order], fontsize=8)
    axes.invert_yaxis()
    axes.set_title(table.label, fontsize=10)
    axes.set_xlabel("held-out loss (nats/token)")


def _recipe_colours(tables: Sequence[Table]) -> dict[str, str]:
    digests = sorted({digest for table in tables for digest in table.recipes})
    return dict(zip(digests, itertools.cycle(COLOURS)))


def _recipe_legend(made: Figure, tables: Sequence[Table], colours: Mapping[str, str]) -> None:
    names = {digest: name for table in tables for digest, name in zip(table.recipes, table.names, strict=True)}
    lines = [
        matplotlib.lines.Line2D([], [], color=colours[digest], label=names[digest])
        for digest in sorted(names, key=names.__getitem__)
    ]
    made.legend(handles=lines, loc="outside right upper", frameon=False, fontsize=8)
