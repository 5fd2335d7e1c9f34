"""Runs a command and tells its wall time, CPU time and memory, of the whole process tree."""

from __future__ import annotations

import os
import statistics
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Cost:
    """What one command cost."""

    wall_seconds: float
    cpu_seconds: float
    peak_mebibytes: float


def run(command: Sequence[str], directory: Path, environment: Mapping[str, str] | None = None) -> Cost:
    """Run `command` to its end; raises RuntimeError with its output when it fails."""
    log = directory / "command.log"
    with log.open("wb") as stream:
        began = time.perf_counter()
        process = subprocess.Popen(
            command, cwd=directory, stdout=stream, stderr=stream, env={**os.environ, **(environment or {})}
        )
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}:\n{log.read_text()[-3000:]}")
    return Cost(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)


def median(costs: Sequence[Cost]) -> Cost:
    """The median of each figure."""
    return Cost(
        statistics.median(cost.wall_seconds for cost in costs),
        statistics.median(cost.cpu_seconds for cost in costs),
        max(cost.peak_mebibytes for cost in costs),
    )
