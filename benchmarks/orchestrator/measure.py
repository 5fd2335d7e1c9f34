"""Runs a command and tells its wall time, CPU time and memory, of the whole process tree."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.turns import in_turns
from stages.memory import peak_memory_bytes, peak_memory_of

LONGEST_SECONDS = 1800.0
ENOUGH_SECONDS = 120.0
"""Wall time after which a measure is not repeated any more."""
LOOK_SECONDS = 0.01


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


def run(command: Sequence[str], directory: Path, environment: Mapping[str, str], *, may_fail: bool = False) -> Cost:
    """Run `command` to its end. Raises RuntimeError with its output when it fails, unless it may."""
    log = directory / "command.log"
    with log.open("wb") as stream:
        began = time.perf_counter()
        process = start(command, directory, environment, stream)
        clock = threading.Timer(LONGEST_SECONDS, lambda: os.killpg(process.pid, signal.SIGKILL))
        clock.start()
        own = OwnPeak(process.pid)
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - began
        clock.cancel()
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode and not may_fail:
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}:\n{log.read_text()[-3000:]}")
    peak = own.peak_of_the_tree(usage.ru_maxrss * 1024)
    return Cost(wall, usage.ru_utime + usage.ru_stime, peak / 2**20, process.returncode)


class OwnPeak(threading.Thread):
    """Looks at the peak memory of a command while it runs.

    The system's own figure at the end, `ru_maxrss`, begins with what the process that started the command had, so that
    it says nothing of a command smaller than that.
    """

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.pid, self.seen, self.floor = pid, 0, peak_memory_bytes()
        self._ended = threading.Event()
        self.start()

    def run(self) -> None:
        while not self._ended.wait(LOOK_SECONDS):
            self.seen = max(self.seen, peak_memory_of(self.pid) or 0)

    def peak_of_the_tree(self, reported: int) -> int:
        """Bytes of the largest process, given the `ru_maxrss` of the command and what it waited for."""
        self._ended.set()
        self.join()
        return reported if reported > self.floor or not self.seen else self.seen


def start(command: Sequence[str], directory: Path, environment: Mapping[str, str], log: object) -> subprocess.Popen:
    """Start `command` as the head of a process group of its own."""
    merged = {**os.environ, **environment}
    return subprocess.Popen(command, cwd=directory, stdout=log, stderr=log, env=merged, start_new_session=True)  # type: ignore[arg-type]


def turns(times: int, contenders: Mapping[str, Callable[[], Cost]]) -> dict[str, list[Cost]]:
    """Each contender in turns, in opposite orders, at least once; not again once its own took `ENOUGH_SECONDS`."""
    found: dict[str, list[Cost]] = {name: [] for name in contenders}
    for _, name in in_turns(contenders, times):
        if sum(cost.wall_seconds for cost in found[name]) < ENOUGH_SECONDS:
            found[name].append(contenders[name]())
    return found
