"""Runs a command and tells its wall time, CPU time and memory, of the whole process tree."""

from __future__ import annotations

import os
import signal
import statistics
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

LONGEST_SECONDS = 1800.0
ENOUGH_SECONDS = 120.0
"""Wall time after which a measure is not repeated any more."""


@dataclass(frozen=True)
class Cost:
    """What one command cost. CPU time is that of the process and of all its children that it waited for."""

    wall_seconds: float
    cpu_seconds: float
    peak_mebibytes: float
    """Of the largest process."""
    status: int = 0
    executed: int | None = None
    """Stages that ran, where that was counted."""


@dataclass(frozen=True)
class Spread:
    """Least, median and most of one figure."""

    least: float
    median: float
    most: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(min(values), statistics.median(values), max(values))


def run(command: Sequence[str], directory: Path, environment: Mapping[str, str], *, may_fail: bool = False) -> Cost:
    """Run `command` to its end. Raises RuntimeError with its output when it fails, unless it may."""
    log = directory / "command.log"
    with log.open("wb") as stream:
        began = time.perf_counter()
        process = start(command, directory, environment, stream)
        clock = threading.Timer(LONGEST_SECONDS, lambda: os.killpg(process.pid, signal.SIGKILL))
        clock.start()
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - began
        clock.cancel()
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode and not may_fail:
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}:\n{log.read_text()[-3000:]}")
    return Cost(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024, process.returncode)


def start(command: Sequence[str], directory: Path, environment: Mapping[str, str], log: object) -> subprocess.Popen:
    """Start `command` as the head of a process group of its own."""
    merged = {**os.environ, **environment}
    return subprocess.Popen(command, cwd=directory, stdout=log, stderr=log, env=merged, start_new_session=True)  # type: ignore[arg-type]


def repeat(times: int, measure: Callable[[], Cost]) -> list[Cost]:
    """`measure`, at least once; no further once all of it took `ENOUGH_SECONDS`."""
    costs: list[Cost] = []
    while len(costs) < times and sum(cost.wall_seconds for cost in costs) < ENOUGH_SECONDS:
        costs.append(measure())
    return costs
