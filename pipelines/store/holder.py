"""Who is at work: a run's driver, told apart from a later process that got the same number.

A process number means something on one machine, since one boot, within one container. Only there can a look tell
whether the process still lives; of any other holder, what counts is whether its heartbeat goes on.
"""

from __future__ import annotations

import json
import os
import socket
import time
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

from pipelines.spec.quantities import format_duration

HEARTBEAT_SECONDS: Final = 15.0
EXPIRY_SECONDS: Final = 60.0
"""A holder that is silent for so long is taken for dead."""


@dataclass(frozen=True)
class Holder:
    """The driver of a run."""

    run: str
    host: str = ""
    machine: str = ""
    """Host, boot and process namespace: where `pid` can be looked up."""
    pid: int = 0
    born: str = ""
    """When the process started, in the kernel's count; "" where that cannot be known."""
    since: float = 0.0
    """When it began to hold, in seconds since the epoch by its own clock: for people."""
    stage: str = ""

    @classmethod
    def here(cls, run: str, stage: str = "") -> Holder:
        """This process, as the driver of `run`."""
        pid = os.getpid()
        return cls(run, socket.gethostname(), this_machine(), pid, _born(pid) or "", round(time.time(), 3), stage)

    @classmethod
    def from_json(cls, text: str | bytes) -> Holder:
        """Read a holder; one that cannot be read (a crash came between) is nobody that is known."""
        try:
            return cls(**json.loads(text))
        except (ValueError, TypeError):
            return cls("unknown")

    def to_json(self) -> str:
        """The holder as text."""
        return json.dumps(asdict(self), sort_keys=True)

    @property
    def is_local(self) -> bool:
        """Whether this machine can tell if the process lives."""
        return bool(self.machine) and self.machine == this_machine()

    @property
    def is_gone(self) -> bool:
        """Whether the process is known to have ended: the number is free, or another process has it now."""
        if not self.is_local:
            return False
        born = _born(self.pid)
        return born is None or bool(self.born and born and born != self.born)

    def __str__(self) -> str:
        what = f"stage {self.stage!r} of run {self.run}" if self.stage else f"run {self.run}"
        if not self.host:
            return what
        since = time.strftime("%H:%M:%S", time.localtime(self.since))
        return f"{what} (process {self.pid} on {self.host}, since {since})"


@cache
def this_machine() -> str:
    """Host name, boot and process namespace of this process."""
    boot = _read("/proc/sys/kernel/random/boot_id")
    try:
        namespace = os.readlink("/proc/self/ns/pid")  # noqa: PTH115  (not a path: `pid:[4026531836]`)
    except OSError:
        namespace = ""
    return " ".join(filter(None, (socket.gethostname(), boot[:13], namespace)))


def silence(file: Path, probe: Path) -> float:
    """Seconds since `file` was written, by the clock of the disk that has both: `probe` is touched to read it."""
    try:
        probe.touch()
        now = probe.stat().st_mtime
    except PermissionError:
        now = time.time()  # who may only read goes by the clock here
    return now - file.stat().st_mtime


def silent_for(seconds: float) -> str:
    """What is told of a holder without heartbeat."""
    return f"nothing has been heard of it for {format_duration(seconds)}"


def _born(pid: int) -> str | None:
    """When process `pid` started; None when there is none, "" when that cannot be known."""
    if Path("/proc/self/stat").exists():
        fields: list[Any] = _read(f"/proc/{pid}/stat").rpartition(")")[2].split()
        # state is the first field after the name, the start time the 20th; a zombie has ended
        return fields[19] if len(fields) > 19 and fields[0] not in "ZX" else None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass  # it lives, and belongs to somebody else
    return ""


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except OSError:
        return ""
