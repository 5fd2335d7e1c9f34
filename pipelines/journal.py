"""The run's own record: `runs/<run>/journal.jsonl`, one JSON event a line, written as things happen.

It is the truth that `status`, `logs` and the mirror in MLflow are made from. Events that change a state are on the disk
before the run goes on; points of curves may wait for the next of those.
"""

from __future__ import annotations

import json
import os
import secrets
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final

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
        """Flush and close the file."""
        self.file.close()


def run_names(runs: Path) -> list[str]:
    """The runs that have a journal, oldest first (names sort by time)."""
    return sorted(path.parent.name for path in runs.glob("*/journal.jsonl"))
