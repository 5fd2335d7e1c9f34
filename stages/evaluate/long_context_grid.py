"""Recall by task, length and depth: averages, figures and the heat map."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes

from stages.evaluate.long_context_scoring import Recall
from stages.evaluate.needles_scripts import LISTING
from stages.figures import MAP_STYLE, figure

Cell = tuple[str, int, float]
"""Task, length in tokens, depth from 0 to 1."""


class Grid:
    """What was recalled in each cell of tasks × lengths × depths."""

    def __init__(self, tasks: Sequence[str], lengths: Sequence[int], depths: Sequence[float]) -> None:
        self.tasks, self.lengths, self.depths = list(tasks), list(lengths), list(depths)
        self._cells: defaultdict[Cell, list[Recall]] = defaultdict(list)

    def add(self, cell: Cell, found: Recall) -> None:
        """Count `found` in `cell`."""
        self._cells[cell].append(found)

    def metrics(self) -> dict[str, float]:
        """`TASK_accuracy` (also `_LENGTH`), `TASK_nll`, `TASK_recall` where several answers are asked for, and over all
        probes `needle_accuracy` and `needle_nll`; `TASK_generated` where text was generated.
        """
        figures = {"needle_accuracy": accuracy(self._select()), "needle_nll": nll(self._select())}
        for task in self.tasks:
            of_task = self._select(task)
            figures |= {f"{task}_accuracy": accuracy(of_task), f"{task}_nll": nll(of_task)}
            figures |= {f"{task}_accuracy_{length}": accuracy(self._select(task, length)) for length in self.lengths}
            if task in LISTING:
                figures[f"{task}_recall"] = share(of_task)
            if all(found.generated is not None for found in of_task):
                figures[f"{task}_generated"] = generated(of_task)
        return figures

    def tables(self) -> dict[str, Any]:
        """For each task and measure a table with a row for each depth and a column for each length."""
        measures = {"accuracy": accuracy, "nll": nll, "recall": share}
        if all(found.generated is not None for found in self._select()):
            measures["generated"] = generated
        return {task: {name: self.table(task, measure) for name, measure in measures.items()} for task in self.tasks}

    def table(self, task: str, measure: Callable[[list[Recall]], float]) -> list[list[float]]:
        """`measure` of each cell of `task`: a row for each depth, a column for each length."""
        return [[measure(self._cells[task, length, depth]) for length in self.lengths] for depth in self.depths]

    def _select(self, task: str | None = None, length: int | None = None) -> list[Recall]:
        return [
            found
            for (its_task, its_length, _), cell in sorted(self._cells.items())
            if task in (None, its_task) and length in (None, its_length)
            for found in cell
        ]


def accuracy(cell: list[Recall]) -> float:
    """Share of the probes all of whose answers are the model's first choice, token by token."""
    return sum(all(found.hits) for found in cell) / len(cell)


def share(cell: list[Recall]) -> float:
    """Share of the answers that are the model's first choice, token by token."""
    return sum(map(sum, (found.hits for found in cell))) / sum(len(found.hits) for found in cell)


def nll(cell: list[Recall]) -> float:
    """Mean negative log-likelihood of an answer token, in nats."""
    return sum(found.nats for found in cell) / sum(found.num_tokens for found in cell)


def generated(cell: list[Recall]) -> float:
    """Share of the answers found in the generated text, averaged over probes."""
    return sum(found.generated or 0.0 for found in cell) / len(cell)


def draw(grid: Grid, file: Path) -> None:
    """Write the heat maps of accuracy as SVG, one for each task; equal grids give equal bytes."""
    columns = min(2, len(grid.tasks))
    rows = -(-len(grid.tasks) // columns)
    width, height = max(3.2, 1.4 + 0.7 * len(grid.lengths)), 1.3 + 0.34 * len(grid.depths)
    with figure(file, width * columns, height * rows, MAP_STYLE) as made:
        for place, task in enumerate(grid.tasks, start=1):
            _heat_map(made.add_subplot(rows, columns, place), grid, task)


def _heat_map(axes: Axes, grid: Grid, task: str) -> None:
    table = grid.table(task, accuracy)
    axes.pcolormesh(table, cmap="RdYlBu", vmin=0, vmax=1, alpha=0.6, edgecolors="white")
    axes.invert_yaxis()
    axes.set_title(task.replace("_", " "), fontsize=10)
    axes.set_xticks([place + 0.5 for place in range(len(grid.lengths))], [str(length) for length in grid.lengths])
    axes.set_yticks([place + 0.5 for place in range(len(grid.depths))], [f"{depth:.0%}" for depth in grid.depths])
    axes.set(xlabel="length (tokens)", ylabel="depth")
    axes.tick_params(length=0)
    for row, values in enumerate(table):
        for column, value in enumerate(values):
            axes.text(column + 0.5, row + 0.5, f"{value:.0%}", ha="center", va="center")
