"""The processes that a stage starts: none of them outlasts a stage that fails or runs out of time."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path


def children() -> frozenset[int]:
    """The processes that this one has started and that still run."""
    listed = list(Path("/proc/self/task").glob("*/children"))
    if listed:
        return frozenset(int(pid) for file in listed for pid in _read(file).split())
    import psutil

    return frozenset(child.pid for child in psutil.Process().children())


def end_children(before: frozenset[int]) -> None:
    """Kill the processes that this one has started since there were `before`, with all that those started."""
    import psutil

    for child in psutil.Process().children():
        if child.pid in before:
            continue
        with contextlib.suppress(psutil.Error):
            if child.name() == "raylet":
                sys.modules["ray"].shutdown()  # a cluster that this process started: it must learn of its end
            for process in [*child.children(recursive=True), child]:
                process.kill()


def _read(file: Path) -> str:
    try:
        return file.read_text()
    except OSError:  # a thread that has ended meanwhile
        return ""
