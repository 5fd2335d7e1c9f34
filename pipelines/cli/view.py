"""What a person sees while a run goes on: a live table in a terminal, plain lines anywhere else.

Both are listeners of the journal. They write to a copy of the terminal made when they start, because a stage that runs
in this process has its output sent to its log.
"""

from __future__ import annotations

import os
import sys
import time
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Final

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from pipelines.cli.console import new_console
from pipelines.cli.format import SHOWN, format_metrics
from pipelines.spec.pipeline import Pipeline
from pipelines.spec.quantities import format_duration

SAID: Final = frozenset({"message", "waits-for-room", "has-room"})
"""Events whose text is for people."""
MOST_ROWS: Final = 30


@dataclass
class Row:
    """One stage on the screen."""

    name: str
    uses: str
    state: str = "waiting"
    began: float = 0.0
    seconds: float = 0.0
    done: float = 0.0
    total: float = 0.0
    unit: str = ""
    first: tuple[float, float] | None = None
    """Time and amount of the first progress seen, so that start-up does not spoil the estimate."""
    note: str = ""
    curves: dict[str, float] = field(default_factory=dict)

    @property
    def amount(self) -> str:
        """`1,000 of 6,000 documents`, or `1,000 documents` where nobody knows how many there are."""
        of = f" of {self.total:,.0f}" if self.total else ""
        return f"{self.done:,.0f}{of} {self.unit}"

    def left_seconds(self, now: float) -> float | None:
        """The estimated rest, from the rate since the first progress; None while there is none."""
        if not self.total or self.first is None or self.done <= self.first[1]:
            return None
        rate = (self.done - self.first[1]) / max(1e-9, now - self.first[0])
        return (self.total - self.done) / rate


class Picture:
    """The rows, kept up to date by events."""

    def __init__(self, pipeline: Pipeline) -> None:
        self.rows = {name: Row(name, spec.uses) for name, spec in pipeline.stages.items()}
        self.began = time.monotonic()

    def update(self, event: dict[str, Any]) -> Row | None:
        """Take in an event; returns the row it was about. Stages that were not chosen have no row."""
        if event["event"] == "run-started":
            for stage in event["stages"]:
                if stage.get("state") == "left":
                    del self.rows[stage["name"]]
        row = self.rows.get(event.get("stage", ""))
        if row is None:
            return None
        kind = event["event"]
        if kind == "stage-started":
            # Nothing of an earlier attempt counts for this one.
            row = self.rows[row.name] = Row(row.name, row.uses, "running", time.monotonic())
        elif kind == "stage-finished":
            row.state, row.seconds = event["state"], event["seconds"]
            row.note = event["error"]["message"] if event["error"] else format_metrics(event["metrics"])
        elif kind == "progress":
            if (event["total"], event["unit"]) != (row.total, row.unit):
                row.first = None  # another part of the work, at another rate
            row.done, row.total, row.unit = event["done"], event["total"], event["unit"]
            row.first = row.first or (time.monotonic(), row.done)
        elif kind == "curve":
            row.curves.update(event["values"])
        elif kind in SAID:
            row.note = event["text"]
        return row


class LiveView(AbstractContextManager["LiveView"]):
    """A table that is redrawn a few times a second."""

    def __init__(self, pipeline: Pipeline) -> None:
        self.picture = Picture(pipeline)
        self.console = own_console()
        self.live = Live(get_renderable=self._table, console=self.console, refresh_per_second=4, transient=True)

    def __enter__(self) -> LiveView:
        self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.live.stop()

    def __call__(self, event: dict[str, Any]) -> None:
        """Hear an event of the journal."""
        self.picture.update(event)

    def _table(self) -> Table:
        now = time.monotonic()
        table = Table(box=None, padding=(0, 1), show_header=False, expand=True)
        for _ in range(5):
            table.add_column(no_wrap=True, overflow="ellipsis")
        table.add_column(no_wrap=True, overflow="ellipsis", ratio=1)  # a long note gives way, names and times do not
        rows = list(self.picture.rows.values())
        shown = (
            rows if len(rows) <= MOST_ROWS else [row for row in rows if row.state in ("running", "failed")][:MOST_ROWS]
        )
        for row in shown:
            table.add_row(*self._cells(row, now))
        ended = sum(row.state not in ("waiting", "running") for row in rows)
        table.add_row(
            "", Text(f"{ended} of {len(rows)} stages", "dim"), "", "", format_duration(now - self.picture.began)
        )
        return table

    def _cells(self, row: Row, now: float) -> tuple[Any, ...]:
        mark, style = SHOWN[row.state]
        bar: Any = ""
        note = row.note
        clock = format_duration(row.seconds) if row.seconds else ""
        if row.state == "running":
            clock = format_duration(now - row.began)
            if row.unit:
                bar = ProgressBar(total=row.total, completed=row.done, width=20) if row.total else ""
                left = row.left_seconds(now)
                note = ", ".join(
                    part
                    for part in (
                        row.amount,
                        f"{format_duration(left)} left" if left is not None else "",
                        format_metrics(row.curves, most=2),
                    )
                    if part
                )
        return Text(mark, style), Text(row.name, style), Text(row.uses, "dim"), bar, clock, Text(note, "dim")


class LineView(AbstractContextManager["LineView"]):
    """One line for each thing that happens; progress at most every 20 seconds a stage."""

    def __init__(self, pipeline: Pipeline) -> None:
        self.picture = Picture(pipeline)
        self.console = own_console()
        self.told: dict[str, float] = {}

    def __exit__(self, *_: object) -> None:
        return None

    def __call__(self, event: dict[str, Any]) -> None:
        """Hear an event of the journal."""
        row = self.picture.update(event)
        if row is None or not (line := self._line(row, event)):
            return
        mark, style = SHOWN[row.state]
        self.console.print(Text(f"{mark} {row.name:<24} ", style) + Text(line, "default"), soft_wrap=True)

    def _line(self, row: Row, event: dict[str, Any]) -> str:
        kind = event["event"]
        if kind == "stage-started":
            return f"started: {short_reasons(event['reasons'])}"
        if kind == "stage-finished" and row.state == "kept":
            return f"kept: {event['reason']}"
        if kind == "stage-finished":
            clock = f" in {format_duration(row.seconds)}" if row.state in ("done", "failed") else ""
            return f"{row.state}{clock}" + (f": {row.note}" if row.note else "")
        if kind in SAID:
            return "" if event.get("queues") else event["text"]  # behind the run's own stages: that is no news
        if kind == "progress" and time.monotonic() - self.told.get(row.name, row.began) > 20:
            self.told[row.name] = time.monotonic()
            left = row.left_seconds(time.monotonic())
            estimate = f", {format_duration(left)} left" if left is not None else ""
            return f"{row.amount}{estimate}"
        return ""


def short_reasons(reasons: list[str], most: int = 2) -> str:
    """The first reasons, and how many more there are."""
    rest = f"; and {len(reasons) - most} more (regraft plan --why tells)" if len(reasons) > most else ""
    return "; ".join(reasons[:most]) + rest


def own_console() -> Console:
    """A console on a copy of stdout, which redirections made later do not touch."""
    sys.stdout.flush()
    stream = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8", errors="replace")
    return new_console(stream)
