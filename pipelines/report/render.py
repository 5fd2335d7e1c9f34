"""Makes the page from the values: numbers become words, the rest is `report.html.j2`. Everything is escaped."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from pipelines.cli.format import format_metric, format_metrics
from pipelines.lineage.drawing import LABELS, Node, Status, draw
from pipelines.lineage.records import cut, flatten
from pipelines.report.change import change, verdict
from pipelines.report.figures import Gallery
from pipelines.report.models import DISTANCES, FACTS, Column, ModelRow, ModelTable
from pipelines.report.values import GateReport, RunReport, StageReport
from pipelines.running.result import MARKS
from pipelines.spec.quantities import format_bytes, format_duration

ANSI: Final = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]")
CONTROL: Final = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
"""What HTML cannot carry; logs hold some of it."""
RELATIVE: Final = re.compile(r"ratio|^kl|_kl|agreement|cosine|speedup")
"""Figures that compare two models already: a difference from the first row would compare twice."""
WORDS: Final = {"kl": "KL", "top1": "top-1", "ce": "CE", "kv": "KV", "bytes": "bytes"}
MOST_COLUMNS: Final = 10
"""Of one table: what fits the width of a page."""
SMALLEST_GRAPH: Final = 0.78
"""A wide graph is shown at no less than this scale and scrolls sideways: its words stay readable on a phone."""


@dataclass(frozen=True)
class Cell:
    """A figure in the table of models: as text, its change from the first row, and whether that is good."""

    text: str
    change: str = ""
    verdict: str = ""
    """`better`, `worse`, or empty when neither."""


def render(report: RunReport, models: ModelTable, figures: Sequence[Gallery], curves: Sequence[Gallery]) -> str:
    """The page: one HTML document that needs nothing but itself."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "duration": format_duration,
        "size": format_bytes,
        "metric": lambda value, name: format_metric(name, value),
        "metrics": format_metrics,
        "leaf": _leaf,
        "cut": cut,
        "words": words,
        "flatten": lambda tree: {name: value for name, value in flatten(tree).items() if value != {}},
    }
    page = environment.get_template("report.html.j2").render(
        report=report,
        models=models,
        tables=_tables(models),
        figures=figures,
        curves=curves,
        graph=_graph(report.stages),
        gates=[(stage, gate) for stage in report.stages for gate in stage.gates],
        left=[stage.name for stage in report.stages if stage.state == "left"],
        failed=[stage for stage in report.stages if stage.error],
        counts=_counts(report.stages),
        when=datetime.fromtimestamp(report.began).astimezone().strftime("%-d %B %Y, %H:%M %Z"),
        marks=MARKS,
        labels=LABELS,
        outcome=_outcome,
    )
    return CONTROL.sub("\ufffd", ANSI.sub("", page))


def words(name: str) -> str:
    """A metric's name as a heading: `kl_to_parent` becomes `KL to parent`."""
    return " ".join(WORDS.get(word, word) for word in name.split("_") if word)


def _tables(table: ModelTable) -> list[dict[str, Any]]:
    """The table in parts that fit a page: what every model has first, then the rest, without rows that say nothing."""
    rows = [(row, _cells(row, table)) for row in table.rows]
    parts = []
    for start, end in itertools.pairwise(_breaks(table)):
        told = [(row, cells[start:end]) for row, cells in rows if start == 0 or any(c.text for c in cells[start:end])]
        parts.append({"columns": table.columns[start:end], "rows": told})
    return parts if rows else []


def _breaks(table: ModelTable) -> list[int]:
    """Where the columns are broken into tables: nowhere if few, else after the distances and between evaluations."""
    total = len(table.columns)
    if total <= MOST_COLUMNS:
        return [0, total]
    lead = sum(column.metric in (*FACTS, *DISTANCES) for column in table.columns)
    breaks, end = [0, lead] if lead else [0], lead
    for _, group in itertools.groupby(table.columns[lead:], key=lambda column: column.source):
        width = len(list(group))
        if end > breaks[-1] and end + width - breaks[-1] > MOST_COLUMNS:
            breaks.append(end)
        end += width
    return [*breaks, end] if end > breaks[-1] else breaks


def _cells(row: ModelRow, table: ModelTable) -> list[Cell]:
    first = table.rows[0]
    return [
        _cell(column, value, None if row is first else reference)
        for column, value, reference in zip(table.columns, row.cells, first.cells, strict=True)
    ]


def _cell(column: Column, value: float | None, reference: float | None) -> Cell:
    if value is None:
        return Cell("")
    text = format_metric(column.metric, value)
    if reference is None or RELATIVE.search(column.metric):
        return Cell(text)
    return Cell(text, change(column.metric, value, reference), verdict(column.metric, value, reference))


def _outcome(gate: GateReport) -> str:
    """The class and word of a gate."""
    return {True: "holds", False: "broken", None: "not reached"}[gate.holds]


def _graph(stages: Sequence[StageReport]) -> dict[str, Any]:
    """The graph as SVG in the page, and the least width in pixels at which its words can be read."""
    nodes = [Node(stage.name, stage.uses, stage.upstream) for stage in stages]
    svg = draw(nodes, {stage.name: Status(stage.state, stage.seconds) for stage in stages})
    width = re.search(r'viewBox="0 0 (\d+)', svg)
    least = round(int(width[1]) * SMALLEST_GRAPH) if width else 0
    return {
        "svg": Markup(svg.replace(' xmlns="http://www.w3.org/2000/svg"', "", 1)),
        "least": least,
        "most": round(least * 1.4),
    }


def _counts(stages: Iterable[StageReport]) -> str:
    counts: dict[str, int] = {}
    for stage in stages:
        state = LABELS.get(stage.state, stage.state)
        counts[state] = counts.get(state, 0) + 1
    return ", ".join(f"{number} {state}" for state, number in counts.items())


def _leaf(value: Any) -> str:
    """A parameter's value as it would stand in the pipeline file, nearly."""
    if isinstance(value, str):
        return value or '""'
    if isinstance(value, Mapping | list | tuple) or value is None or isinstance(value, bool):
        return json.dumps(value, ensure_ascii=False, default=str)
    return f"{value:,}" if isinstance(value, int) and abs(value) >= 10_000 else str(value)
