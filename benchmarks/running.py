"""Runs a part in a process group of its own, with what it says in files, and tells how far everything is."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import psutil

from benchmarks.findings import Findings
from benchmarks.parts import Part

LOOK_SECONDS = 0.5


@dataclass(frozen=True)
class Outcome:
    """What came of a part."""

    name: str
    command: str
    """For this part alone."""
    state: Literal["done", "failed"]
    seconds: float
    findings: Findings | None
    told: str = ""
    """The last that a failed part said."""
    began: str = ""
    """Date and time, of the machine's clock."""

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**vars(self), "findings": self.findings and self.findings.to_dict()}

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> Outcome:
        """What `to_dict` gave."""
        findings = content["findings"] and Findings.from_dict(content["findings"])
        return cls(**{**content, "findings": findings})


def run_part(part: Part, command: list[str], logs: Path, look: Callable[[str], None]) -> Outcome:
    """Run it to its end; `look` is called twice a second with the last line that it said.

    Logs and findings stay in `logs`, under the name of the part. When this process ends, so does the part.
    """
    logs.mkdir(parents=True, exist_ok=True)
    out, said, handed = (logs / f"{part.name}.{kind}" for kind in ("out", "log", "json"))
    handed.unlink(missing_ok=True)
    words = [sys.executable, *command[1:], *(("--json", str(handed)) if part.hands_over else ())]
    began, moment = time.monotonic(), time.strftime("%Y-%m-%d %H:%M")
    with out.open("wb") as stdout, said.open("wb") as stderr:
        process = subprocess.Popen(
            words, stdout=stdout, stderr=stderr, stdin=subprocess.DEVNULL, start_new_session=True
        )
        try:
            _wait(process, said, look)
        finally:
            _end(process)
    return Outcome(
        part.name,
        shlex.join(command),
        "failed" if process.returncode else "done",
        time.monotonic() - began,
        _findings(part, out, handed),
        _last_line(said) or f"ended with {process.returncode}" if process.returncode else "",
        moment,
    )


class Estimate:
    """How long what is left will take, from what was expected of each part and what the parts before took."""

    def __init__(self, expected: list[float]) -> None:
        self.expected, self.spent = expected, 0.0
        self.done = 0

    def finished(self, seconds: float) -> None:
        """The next part took `seconds`."""
        self.spent += seconds
        self.done += 1

    def left(self, running_seconds: float = 0.0) -> float:
        """Seconds, the part that has run for `running_seconds` included."""
        pace = self.spent / sum(self.expected[: self.done]) if self.done else 1.0
        now = pace * self.expected[self.done] if self.done < len(self.expected) else 0.0
        return max(0.0, now - running_seconds) + pace * sum(self.expected[self.done + 1 :])


def span(seconds: float) -> str:
    """`42 s`, `12 min`, `1 h 20 min`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02} min"


def _wait(process: subprocess.Popen[bytes], said: Path, look: Callable[[str], None]) -> None:
    while True:
        try:
            process.wait(LOOK_SECONDS)
            return
        except subprocess.TimeoutExpired:
            look(_last_line(said))


def _end(process: subprocess.Popen[bytes]) -> None:
    """Whatever is left of the group: the part when this process was told to stop, or what it left behind."""
    with contextlib.suppress(psutil.NoSuchProcess):
        for child in psutil.Process(process.pid).children(recursive=True):  # parts start groups of their own
            child.kill()
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _findings(part: Part, out: Path, handed: Path) -> Findings | None:
    if handed.exists():
        return Findings.from_dict(json.loads(handed.read_text(encoding="utf-8")))
    printed = out.read_text(encoding="utf-8", errors="replace").strip()
    return Findings(part.about, more=printed) if printed and not part.hands_over else None


def _last_line(file: Path) -> str:
    with file.open("rb") as stream:
        stream.seek(max(0, file.stat().st_size - 2000))
        lines = stream.read().decode(errors="replace").replace("\r", "\n").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "")
