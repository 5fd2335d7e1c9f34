"""The tables that commands print."""

from __future__ import annotations

import shlex
import textwrap
from collections.abc import Iterable, Mapping

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from pipelines.cli.format import LEADING, SHOWN, format_metric, format_metrics
from pipelines.running.result import RunResult
from pipelines.spec.matrix import stage_base
from pipelines.spec.pipeline import Pipeline
from pipelines.spec.quantities import format_duration
from pipelines.store import Store

MOST_COLUMNS = 5
"""Figures side by side in a terminal; `regraft report` has all of them."""


def grid(*headers: str) -> Table:
    """An unruled table with dim headers."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", pad_edge=False)
    for header in headers:
        last = header == headers[-1] and len(headers) > 1
        table.add_column(header, overflow="fold", no_wrap=not last)
    return table


def result_table(pipeline: Pipeline, result: RunResult) -> RenderableType:
    """Each chosen stage with its state, time and main figures."""
    table = grid("", "stage", "", "time", "result")
    for name in pipeline.stages:
        state = result.states[name]
        if state == "left":
            continue
        mark, style = SHOWN[state]
        manifest = result.manifests.get(name)
        seconds = manifest.evidence.get("seconds") if manifest else None
        clock = format_duration(seconds) if seconds is not None else ""
        figures = result.failures[name].message if name in result.failures else result.stale.get(name, "")
        if not figures and manifest:
            figures = format_metrics(manifest.metrics)
        table.add_row(Text(mark, style), Text(name, style), Text(state, style), clock, Text(figures))
    return table


def figure_tables(pipeline: Pipeline, result: RunResult) -> Iterable[RenderableType]:
    """Side by side, the figures of the arms of each matrix, and of all stages that run the same evaluation."""
    tables: dict[str, dict[str, Mapping[str, float]]] = {}
    for name, spec in pipeline.stages.items():
        is_evaluation, stage = spec.uses.startswith("evaluate."), stage_base(name)
        if name in result.manifests and (is_evaluation or stage != name):
            rows = tables.setdefault(spec.uses if is_evaluation else stage, {})
            rows[name] = result.manifests[name].metrics
    return [_figures(title, rows) for title, rows in tables.items() if any(rows.values())]


def _figures(method: str, rows: Mapping[str, Mapping[str, float]]) -> RenderableType:
    found = dict.fromkeys(name for metrics in rows.values() for name in metrics)
    leading = [*LEADING, "parameters", "bytes"]
    names = [name for name in leading if name in found] + [name for name in found if name not in leading]
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", pad_edge=False)
    table.add_column(method, no_wrap=True)
    for name in names[:MOST_COLUMNS]:
        table.add_column(name.replace("_", " "), justify="right")
    for label, metrics in zip(_labels(list(rows)), rows.values(), strict=True):
        cells = [format_metric(name, metrics[name]) if name in metrics else "" for name in names[:MOST_COLUMNS]]
        table.add_row(Text(label), *cells)
    return table


def _labels(stages: list[str]) -> list[str]:
    """The stages' names; for the arms of one matrix, only what tells them apart."""
    bases = {stage_base(stage) for stage in stages}
    if len(bases) > 1 or not all(stage.endswith("]") for stage in stages):
        return stages
    arms = [stage.partition("[")[2].removesuffix("]").split(",") for stage in stages]
    return [", ".join(value.partition("=")[2] for value in arm) for arm in arms]


def print_failures(console: Console, pipeline: Pipeline, store: Store, result: RunResult, again: str) -> None:
    """Each failure whole: message, the end of its log, the fix, and how to go on."""
    for name, failure in result.failures.items():
        console.print(Text(f"\n✗ {name} ({pipeline.stages[name].uses}): ", "red") + Text(failure.message, "default"))
        if failure.tail:
            console.print(Text(textwrap.indent(failure.tail, "    "), "dim"))
        if failure.fix:
            print(f"  fix: {failure.fix}")
        print(f"  log: {store.command(f'logs {result.run} {shlex.quote(name)}')}")
    print(f"\nwhat is finished is kept; go on with: {again}")
