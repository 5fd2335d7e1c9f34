"""The run's own record: `runs/<run>/journal.jsonl`, one JSON event a line, written as things happen.

It is the truth that `status`, `logs` and the mirror in MLflow are made from. Events that change a state are on the disk
before the run goes on. While a run goes on, a file `open` beside its journal says whose it is; a dead driver leaves it.
"""

from __future__ import annotations

import json
import os
import secrets
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from pipelines.causes import is_disk_full
from pipelines.store import Store
from pipelines.store.holder import Holder
from stages.errors import UserError

Event = dict[str, Any]
Listener = Callable[[Event], None]
PASSING: Final = frozenset({"progress"})
"""Events that listeners hear and the journal does not keep."""
DURABLE: Final = frozenset({"run-started", "stage-started", "stage-finished", "run-finished"})
"""Events that are on the disk before the run goes on (a cache hit is not worth the wait: it can be had again)."""
LONGEST_LINE_BYTES: Final = 16 << 20
LONGEST_END_BYTES: Final = 64 << 10
"""The line that tells the end of a run is shorter."""


def new_run_name(pipeline: str) -> str:
    """A name for a run that sorts by time: `20261123-154210-quickstart-3fa2`."""
    return f"{time.strftime('%Y%m%d-%H%M%S')}-{pipeline}-{secrets.token_hex(2)}"


class JournalWriter:
    """Appends events to a journal and passes each on to the listeners.

    Every line is written whole or not at all, also on a disk that is full, so that a journal can always be read.
    """

    def __init__(self, directory: Path, listeners: Iterable[Listener] = ()) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.mark = directory / "open"
        self.path = directory / "journal.jsonl"
        self.file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        self.length = _cut_torn_line(self.path)
        self.listeners = list(listeners)
        self.ended = False
        self.mark.write_text(Holder.here(directory.name).to_json(), encoding="utf-8")

    def write(self, event: Event) -> None:
        """Record `event` with the time, and tell the listeners. Raises UserError when the disk is full."""
        event = {"time": round(time.time(), 3), **event}
        if event["event"] not in PASSING:
            self._append(json.dumps(event, default=str).encode() + b"\n")
            if event["event"] in DURABLE and event.get("state") not in ("cached", "kept"):
                os.fsync(self.file)
            self.ended = event["event"] == "run-finished"
        for listener in self.listeners:
            listener(event)

    def close(self) -> None:
        """Close the file. The mark of a run whose end could not be written stays: the next run writes it."""
        os.close(self.file)
        if self.ended:
            self.mark.unlink(missing_ok=True)

    def _append(self, line: bytes) -> None:
        try:
            written = 0
            while written < len(line):
                written += os.write(self.file, line[written:])
        except OSError as error:
            os.truncate(self.path, self.length)
            if not is_disk_full(error):
                raise
            fix = "free some space and start the run again: what is finished is kept"
            raise UserError(f"the disk is full: no room for the journal {self.path}", fix=fix) from None
        self.length += len(line)


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


def runs_called(text: str, names: Sequence[str], tagged: Callable[[], Mapping[str, str]] = dict) -> list[str]:
    """The runs that `text` may mean: `latest` of `names`, one of them, what a tag stands for, or the beginning of some.

    `tagged` tells the run of each tag; it is asked when nothing else decides.
    """
    if text == "latest":
        return list(names[-1:])
    if text in names:
        return [text]
    if (run := tagged().get(text)) in names:
        return [run]
    return [name for name in names if text and name.startswith(text)]


def close_dead_runs(store: Store) -> list[str]:
    """Write the end of runs whose driver died: it is gone, or has been silent for long. Returns their names."""
    closed = []
    for mark in (store.root / "runs").glob("*/open"):
        reason = store.death_of(mark.parent.name)
        if reason and store.may_close(mark.parent.name):
            writer = JournalWriter(mark.parent)
            if writer.length:  # it had begun
                writer.write({"event": "run-finished", "state": "cancelled", "seconds": 0.0, "reason": reason})
            writer.close()
            mark.unlink(missing_ok=True)
            store.clear_leases(mark.parent.name)
            closed.append(mark.parent.name)
    return closed


def has_ended(directory: Path) -> bool:
    """Whether the journal in this directory of a run tells its end."""
    journal = directory / "journal.jsonl"
    if not journal.exists():
        return False
    with journal.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - LONGEST_END_BYTES))
        return b'"event": "run-finished"' in file.read().rstrip().rpartition(b"\n")[2]


def _cut_torn_line(path: Path) -> int:
    """Take away the beginning of a line that a crash left at the end; returns the length in bytes."""
    with path.open("rb+") as file:
        content_end = file.seek(0, os.SEEK_END)
        if not content_end:
            return 0
        file.seek(max(0, content_end - LONGEST_LINE_BYTES))
        block = file.read()
        torn = len(block) - (block.rfind(b"\n") + 1)
        if torn:
            file.truncate(content_end - torn)
        return content_end - torn


def _started(path: Path) -> float:
    with path.open(encoding="utf-8") as lines:
        try:
            return float(json.loads(lines.readline())["time"])
        except (ValueError, KeyError, TypeError):
            return path.stat().st_mtime
