"""Brings the files of a run to a remote store while it goes on, so that other machines can follow it, and from there.

A journal goes up whole, each time it has grown; one thread does that every `PERIOD_SECONDS`, or less often where it
takes long. What went wrong in between is tried again; what is wrong at the end is told, and fails nothing.
"""

from __future__ import annotations

import os
import secrets
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from fsspec import AbstractFileSystem

from pipelines.store.remote_lease import remove
from pipelines.store.transfer import Transfer, make_parent

PERIOD_SECONDS: Final = 15.0
TIME_SHARE: Final = 0.1
"""At most this part of the time goes into bringing files up."""
JOURNAL_FILES: Final = ("journal.jsonl", "open", "request.json")
"""What tells of a run in few bytes, and how it is started again."""
COPY_MARK: Final = ".copy"
LOCAL_FILES: Final = ("mirror.json", "mirror.lock", "mirror.log", ".clock", COPY_MARK)
"""What speaks of this machine only."""


class Uplink:
    """Uploads what changed in a run's directory, or only its file `log`."""

    def __init__(self, remote: AbstractFileSystem, address: str, directory: Path, log: str = "") -> None:
        self.remote, self.address, self.directory, self.log = remote, address, directory, log
        self.sent: dict[str, tuple[int, int]] = {}
        self._over = threading.Event()

    @contextmanager
    def following(self) -> Iterator[None]:
        """Upload from time to time, and once more at the end."""
        thread = threading.Thread(target=self._follow, name="uplink", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._over.set()
            thread.join()
            problem = self.send(everything=not self.log)
            if problem:
                print(f"warning: the store does not have all of this run's records: {problem}", file=sys.stderr)

    def send(self, *, everything: bool = False) -> str:
        """Upload what changed, logs of stages only with `everything`; what went wrong, or ""."""
        try:
            for name, path in self._files(everything=everything):
                status = path.stat()
                stamp = status.st_size, status.st_mtime_ns
                if self.sent.get(name) != stamp:
                    make_parent(self.remote, f"{self.address}/{name}")
                    self.remote.put_file(str(path), f"{self.address}/{name}")
                    self.sent[name] = stamp
            if everything and not (self.directory / "open").exists():
                remove(self.remote, f"{self.address}/open")
        # Whatever a network can do; the next round tries again.
        except Exception as problem:
            return " ".join(f"{type(problem).__name__}: {problem}".split())
        return ""

    def _files(self, *, everything: bool) -> Iterator[tuple[str, Path]]:
        if self.log:
            path = self.directory / "logs" / self.log
            yield from [(f"logs/{self.log}", path)] if path.exists() else []
            return
        for path in sorted(self.directory.rglob("*") if everything else self.directory.glob("*")):
            if path.is_file() and path.name not in LOCAL_FILES:
                yield path.relative_to(self.directory).as_posix(), path

    def _follow(self) -> None:
        pause = min(1.0, PERIOD_SECONDS)
        while not self._over.wait(pause):
            began = time.monotonic()
            self.send()
            pause = max(PERIOD_SECONDS, (time.monotonic() - began) / TIME_SHARE)


class Downlink:
    """Brings the records of runs on other machines here."""

    def __init__(self, remote: AbstractFileSystem, base: str, runs: Path) -> None:
        self.remote, self.base, self.runs = remote, base, runs
        self._ahead: float | None = None

    def pull(self, run: str = "", names: tuple[str, ...] = ()) -> None:
        """Download what differs, of `run` or of all, and only files called `names` if given."""
        found = {
            self._name(address): about
            for address, about in self.remote.find(f"{self.base}/{run}".rstrip("/"), detail=True).items()
        }
        for mark in self.runs.glob(f"{run or '*'}/open"):
            if mark.relative_to(self.runs).as_posix() not in found and not self.is_ours(mark.parent):
                mark.unlink(missing_ok=True)
        wanted = [name for name, about in found.items() if self._differs(name, about, names)]
        for directory in {self.runs / name.split("/")[0] for name in wanted}:
            directory.mkdir(parents=True, exist_ok=True)
            (directory / COPY_MARK).touch()
        transfer = Transfer(self.remote, lambda *_: None, "", 0)
        transfer.download((f"{self.base}/{name}", self.runs / name) for name in wanted)
        for name in wanted:
            if name.endswith("/open") and (written := _written(found[name])):
                here = written - self._clock_ahead()
                os.utime(self.runs / name, (here, here))

    def _clock_ahead(self) -> float:
        """Seconds by which the clock of the store, which says when marks were written, is ahead of the one here."""
        if self._ahead is None:
            address = f"{self.base.rpartition('/')[0]}/clock/{secrets.token_hex(8)}"
            began = time.time()
            try:
                make_parent(self.remote, address)
                self.remote.pipe_file(address, b"")
                written = _written(self.remote.info(address))
                remove(self.remote, address)
            except PermissionError:
                written = None  # who may only read goes by the clock here
            self._ahead = written - (began + time.time()) / 2 if written else 0.0
        return self._ahead

    @staticmethod
    def is_ours(directory: Path) -> bool:
        """Whether the journal in `directory` is the original: the run was driven from here."""
        return (directory / "journal.jsonl").exists() and not (directory / COPY_MARK).exists()

    def _differs(self, name: str, about: dict[str, Any], names: tuple[str, ...]) -> bool:
        local = self.runs / name
        if (names and local.name not in names) or self.is_ours(self.runs / name.split("/")[0]):
            return False
        if local.name == "open" or not local.exists():
            return True
        size = local.stat().st_size
        return size < about["size"] if local.name == "journal.jsonl" else size != about["size"]

    def _name(self, address: str) -> str:
        return str(address).lstrip("/").removeprefix(self.base.lstrip("/")).lstrip("/")


def _written(about: dict[str, Any]) -> float | None:
    """When an object was written, in seconds since the epoch, where the store says so."""
    moment = about.get("LastModified") or about.get("created") or about.get("updated")
    return moment.timestamp() if hasattr(moment, "timestamp") else None
