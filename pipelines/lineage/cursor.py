"""What the mirror keeps beside a journal: how many of its lines MLflow has (`mirror.json`), and its lock."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from pipelines.running.journal import Event


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
