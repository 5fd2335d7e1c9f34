"""The most memory that a process has held.

Linux says it in `/proc`. Elsewhere only `getrusage` can tell, and only of this process; on Linux that would begin with
what the process that started this one had.
"""

from __future__ import annotations

import resource
import sys
from pathlib import Path


def peak_memory_bytes() -> int:
    """Most resident memory of this process since `reset_peak_memory`, or since its start where that has no effect."""
    peak = peak_memory_of("self")
    if peak is not None:
        return peak
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used if sys.platform == "darwin" else used * 1024


def peak_memory_of(process: int | str) -> int | None:
    """Most resident memory, in bytes, of a running process so far; None when it has ended, or nobody can tell."""
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except OSError:
        return None
    lines = (line for line in status.splitlines() if line.startswith("VmHWM:"))
    return next((int(line.split()[1]) * 1024 for line in lines), None)


def reset_peak_memory() -> None:
    """Start measuring this process's peak memory anew, where the system can."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return
