"""The files of a run that the mirror reads and writes: journal, cursor and lock.

    <store>/runs/<run>/journal.jsonl   one event a line, appended by the engine
    <store>/runs/<run>/mirror.json     how many of those lines MLflow has, and under which ids
    <store>/runs/<run>/mirror.lock     held by the one process that mirrors this run

A last line without its newline is still being written and is left for later.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from stages.errors import UserError

Event = dict[str, Any]


def run_directory(store: Path, run: str) -> Path:
    """Where the files of one run lie."""
    return store / "runs" / run


def list_runs(store: Path) -> list[str]:
    """Runs that have a journal, oldest first, so that producers are mirrored before what used them."""
    journals = [path for path in (store / "runs").glob("*/journal.jsonl") if path.stat().st_size]
    return [path.parent.name for path in sorted(journals, key=lambda path: (_started(path), path.parent.name))]


def _started(path: Path) -> float:
    with path.open(encoding="utf-8") as lines:
        try:
            return float(json.loads(next(lines))["time"])
        except (ValueError, KeyError, TypeError):
            return path.stat().st_mtime


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


def identity(started: Event) -> str:
    """A name for a run that no other run has, in this store or another, and that survives moving the store."""
    text = json.dumps(started, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


@dataclass
class Cursor:
    """What MLflow already has of one run, as kept in `mirror.json`."""

    uid: str = ""
    tracking: str = ""
    lines: int = 0
    """Lines of the journal that are wholly in MLflow."""
    experiment: str = ""
    parent: str = ""
    children: dict[str, str] = field(default_factory=dict)
    """MLflow run by `slug#attempt`."""
    models: dict[str, str] = field(default_factory=dict)
    """Logged model by digest."""

    @classmethod
    def load(cls, directory: Path) -> Cursor:
        """The cursor of the run in `directory`, or a fresh one."""
        path = directory / "mirror.json"
        if not path.exists():
            return cls()
        known = {item.name for item in fields(cls)}
        return cls(**{name: value for name, value in json.loads(path.read_text("utf-8")).items() if name in known})

    def save(self, directory: Path) -> None:
        """Replace `mirror.json` in one step."""
        partial = directory / "mirror.json.partial"
        with partial.open("w", encoding="utf-8") as file:
            json.dump(asdict(self), file, indent=1, sort_keys=True)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(directory / "mirror.json")


@contextmanager
def locked(path: Path, *, wait: bool = True) -> Iterator[bool]:
    """Hold the lock file at `path`; yields False when another process has it and `wait` is off."""
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        yield True
