"""The run's own record: `runs/<run>/journal.jsonl`, one JSON event a line, written as things happen.

It is the truth that `status`, `logs` and the mirror in MLflow are made from. Events that change a state are on the disk
before the run goes on. A run that ended left no file `open` beside its journal; one whose driver died did.
"""

from __future__ import annotations

import json
import os
import secrets
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final

from stages.errors import UserError

Event = dict[str, Any]
Listener = Callable[[Event], None]
PASSING: Final = frozenset({"progress"})
"""Events that listeners hear and the journal does not keep."""
DURABLE: Final = frozenset({"run-started", "stage-started", "stage-finished", "run-finished"})
"""Events that are on the disk before the run goes on (a cache hit is not worth the wait: it can be had again)."""


def new_run_name(pipeline: str) -> str:
    """A name for a run that sorts by time: `20261123-154210-quickstart-3fa2`."""
    return f"{time.strftime('%Y%m%d-%H%M%S')}-{pipeline}-{secrets.token_hex(2)}"


class JournalWriter:
    """Appends events to a journal and passes each on to the listeners."""

    def __init__(self, directory: Path, listeners: Iterable[Listener] = ()) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.mark = directory / "open"
        self.mark.touch()
        self.file = (directory / "journal.jsonl").open("ab")
        self.listeners = list(listeners)

    def write(self, event: Event) -> None:
        """Record `event` with the time, and tell the listeners."""
        event = {"time": round(time.time(), 3), **event}
        if event["event"] not in PASSING:
            self.file.write(json.dumps(event, default=str).encode() + b"\n")
            self.file.flush()
            if event["event"] in DURABLE and event.get("state") != "cached":
                os.fsync(self.file.fileno())
        for listener in self.listeners:
            listener(event)

    def close(self) -> None:
        """Close the file of a run that ended."""
        self.file.close()
        self.mark.unlink(missing_ok=True)


class Journal:
    """Reads a journal as it grows; every event comes out once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.num_lines = 0
        self._offset = 0

    def read(self) -> list[Event]:
        """The events whose lines were completed since the last call."""
        if not self.path.exists():
            return []
        with self.path.open("rb") as file:
            file.seek(self._offset)
            block = file.read()
        block = block[: block.rfind(b"\n") + 1]
        self._offset += len(block)
        return [self._parse(line) for line in block.split(b"\n")[:-1]]

    def _parse(self, line: bytes) -> Event:
        self.num_lines += 1
        try:
            event = json.loads(line)
        except ValueError as problem:
            raise self._damaged(str(problem)) from problem
        if not isinstance(event, dict) or "event" not in event or "time" not in event:
            raise self._damaged("found no `event` and `time` in it")
        return event

    def _damaged(self, problem: str) -> UserError:
        return UserError(
            f"this line of the journal is damaged: {problem}",
            where=f"{self.path}:{self.num_lines}",
            fix="remove the line; the stages' results are in the store and do not depend on it",
        )


def run_directory(store: Path, run: str) -> Path:
    """Where the files of one run lie."""
    return store / "runs" / run


def list_runs(store: Path) -> list[str]:
    """Runs that have a journal, oldest first."""
    journals = [path for path in (store / "runs").glob("*/journal.jsonl") if path.stat().st_size]
    return [path.parent.name for path in sorted(journals, key=lambda path: (_started(path), path.parent.name))]


def close_dead_runs(store: Path) -> None:
    """Write the end of runs whose driver died. Call it only while holding the store: no run is alive then."""
    for mark in (store / "runs").glob("*/open"):
        writer = JournalWriter(mark.parent)
        writer.write({"event": "run-finished", "state": "cancelled", "seconds": 0.0})
        writer.close()


def _started(path: Path) -> float:
    with path.open(encoding="utf-8") as lines:
        try:
            return float(json.loads(next(lines))["time"])
        except (ValueError, KeyError, TypeError):
            return path.stat().st_mtime
