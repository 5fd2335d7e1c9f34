"""The log of a stage: everything it writes to stdout and stderr, and its last lines for a person."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

TAIL_LINES: Final = 12


@contextlib.contextmanager
def captured_output(log: Path) -> Iterator[None]:
    """Send everything written to stdout and stderr, also by native code and children, to the stage's log."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a", encoding="utf-8", buffering=1) as stream:
        _flush()
        saved = [(number, os.dup(number)) for number in (1, 2)]
        for number, _ in saved:
            os.dup2(stream.fileno(), number)
        try:
            with contextlib.redirect_stdout(stream), contextlib.redirect_stderr(stream):
                yield
        finally:
            for number, copy in saved:
                os.dup2(copy, number)
                os.close(copy)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(ValueError, OSError):
            stream.flush()


def log_tail(log: Path, lines: int = TAIL_LINES) -> str:
    """The last lines of a log."""
    _flush()
    try:
        with log.open("rb") as stream:
            stream.seek(max(0, log.stat().st_size - 16384))
            return "\n".join(stream.read().decode("utf-8", "replace").splitlines()[-lines:])
    except FileNotFoundError:
        return ""
