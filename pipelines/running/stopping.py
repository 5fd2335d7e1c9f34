"""How a run is asked to stop: Ctrl-C, SIGTERM or `regraft cancel`; and how long its stages get to save all."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Final

GRACE_SECONDS: Final = 30.0
"""For running stages to save what they have, unless the one who cancels says otherwise."""
FILE: Final = "stop"
"""Beside the journal of a run that is being cancelled: the seconds of grace."""


def request(run_directory: Path, grace_seconds: float) -> None:
    """Leave word how long the stages get; the signal to the driver comes after it."""
    (run_directory / FILE).write_text(f"{grace_seconds:g}\n", encoding="utf-8")


def grace(run_directory: Path) -> float:
    """Seconds that running stages get."""
    try:
        return max(0.0, float((run_directory / FILE).read_text(encoding="utf-8")))
    except (FileNotFoundError, ValueError):
        return GRACE_SECONDS


@contextmanager
def terminated_like_interrupted() -> Iterator[None]:
    """Let SIGTERM do what Ctrl-C does, in the main thread; elsewhere signals are not ours to handle."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(_signum: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
