"""`regraft compare`: the difference of several runs, in the terminal or as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from pipelines.cli.console import new_console
from pipelines.cli.difference import MISSING, Row, StageRows, compare_runs, comparison_json
from pipelines.cli.format import SHOWN, format_metric
from pipelines.cli.history import find_run, read_run
from pipelines.cli.options import print_json
from pipelines.lineage.view import RunView
from pipelines.report.change import change
from pipelines.store import Store
from stages.errors import UserError


def show_comparison(store: Store, names: Sequence[str], *, everything: bool, as_json: bool) -> None:
    """Print the comparison of two or more runs. Raises UserError when they are not that many, or not there."""
    runs = list(dict.fromkeys(find_run(store, name) for name in names))
    if len(runs) < 2:
        raise UserError(
            f"a comparison needs two different runs, found only {', '.join(runs)}",
            fix=f"`{store.command('status all')}` lists the runs; name them by a unique beginning, a tag, or `latest`",
        )
    views = [read_run(store, run) for run in runs]
    stages = compare_runs(views)
    if as_json:
        print_json(comparison_json(runs, views, stages))
        return
    _print(runs, views, stages, everything=everything)


def _print(runs: Sequence[str], views: Sequence[RunView], stages: Sequence[StageRows], *, everything: bool) -> None:
    console = new_console()
    for index, (run, view) in enumerate(zip(runs, views, strict=True)):
        style = SHOWN.get(view.state, ("", ""))[1]
        console.print(Text.assemble((_letter(index), "bold"), f"  {run}  ", (view.state, style)), soft_wrap=True)
    table = _table(len(runs))
    shown = [stage for stage in stages if everything or stage.differs]
    for stage in shown:
        _add(table, stage, len(runs), everything=everything)
    if shown:
        console.print(table)
    rows = [_is_news(row, stage) for stage in stages for row in stage.rows]
    gone = sum(not all(stage.present) for stage in stages)
    missing = f", {gone} stages are not in every run" if gone else ""
    hidden = "" if everything or all(rows) else "; --all shows what is equal"
    console.print(f"\n{sum(rows)} of {len(rows)} rows differ{missing}{hidden}", style="dim")


def _table(num_runs: int) -> Table:
    """Runs are columns A, B, C …: their names would leave no room for values."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold", pad_edge=False)
    table.add_column("")
    table.add_column("", overflow="fold")
    for index in range(num_runs):
        table.add_column(_letter(index), justify="right", overflow="fold")
    if num_runs == 2:
        table.add_column("change", justify="right", no_wrap=True)
    return table


def _letter(index: int) -> str:
    """A to Z, then the number."""
    return chr(ord("A") + index) if index < 26 else str(index + 1)


def _add(table: Table, stage: StageRows, num_runs: int, *, everything: bool) -> None:
    gone = [Text("" if present else "no such stage", "yellow") for present in stage.present]
    table.add_row()
    table.add_row("" if all(stage.present) else Text("≠", "yellow"), Text(stage.name, "bold"), *gone)
    for row in stage.rows:
        if everything or _is_news(row, stage):
            table.add_row(*_cells(row, num_runs))


def _is_news(row: Row, stage: StageRows) -> bool:
    """Whether the runs that have the stage disagree: that another lacks it stands in its heading."""
    values = tuple(value for value, present in zip(row.values, stage.present, strict=True) if present)
    return Row(row.kind, row.name, values).differs


def _cells(row: Row, num_runs: int) -> list[Text]:
    """Differing values stand out from the first run's by colour, and the row by its mark."""
    values = [Text(_shown(row, value), "" if row.agrees(value) else "yellow") for value in row.values]
    name = Text(f"  {row.name}", "" if row.kind == "metric" else "cyan")
    comparison = [Text(_change(row.name, *row.values), "dim")] if num_runs == 2 else []
    return [Text("≠" if row.differs else "", "yellow"), name, *values, *comparison]


def _shown(row: Row, value: Any) -> str:
    if value is MISSING:
        return "–"
    if row.kind == "metric":
        return format_metric(row.name, value)
    if row.name == "commit" and value:
        return value[:10]
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _change(name: str, first: Any, second: Any) -> str:
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in (first, second))
    return change(name, second, first) if numbers and first != second else ""
