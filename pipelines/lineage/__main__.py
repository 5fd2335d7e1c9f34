"""The mirror's process: `python -m pipelines.lineage STORE RUN [--follow]`.

Alone it applies what the journal holds and ends. With `--follow` it sleeps until its standard input says that there is
more, or ends: the bytes are only a bell, the journal alone is read, so a lost or doubled bell does no harm.
"""

from __future__ import annotations

import argparse
import os
import select
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.lineage.address import settle_environment, shown, tracking_uri
from pipelines.lineage.cursor import locked
from pipelines.lineage.redact import Redactor
from pipelines.running.journal import run_directory
from stages.errors import RegraftError, UserError

if TYPE_CHECKING:
    from pipelines.lineage.mirror import RunMirror

PAUSE_SECONDS = 2.0
"""Least time between two batches: training writes points faster than a database should be bothered with them."""
RETRY_SECONDS = 30.0
"""The same after a failure: a server that restarts is back by then."""
NICENESS = 10


def main() -> int:
    """Mirror one run; 0 when MLflow has all of it, 1 with one line on standard error when not."""
    parser = argparse.ArgumentParser(prog="python -m pipelines.lineage", description="Mirror one run into MLflow.")
    parser.add_argument("store", type=Path)
    parser.add_argument("run")
    parser.add_argument("--follow", action="store_true", help="stay until standard input ends")
    options = parser.parse_args()
    settle_environment()
    try:
        with locked(run_directory(options.store, options.run) / "mirror.lock", wait=False) as mine:
            if not mine:
                raise UserError(f"run {options.run} is being mirrored by another process")
            _follow(options.store, options.run) if options.follow else _once(options.store, options.run)
    # The last line on standard error is what the user sees; whatever went wrong has to become one.
    except Exception as problem:
        if not isinstance(problem, RegraftError):
            traceback.print_exc()
        print(explain(options.store, options.run, problem), file=sys.stderr, flush=True)
        return 1
    return 0


def explain(store: Path, run: str, problem: Exception) -> str:
    """One line for the person who watches: which MLflow did not take which run, and why."""
    if isinstance(problem, RegraftError):
        return " ".join(str(problem).split())
    reason = " ".join(Redactor().text(str(problem)).split()) or type(problem).__name__
    reason = reason if len(reason) <= 240 else reason[:239] + "…"
    return f"MLflow at {shown(tracking_uri(store))} did not take run {run}: {reason}"


def _open(store: Path, run: str) -> RunMirror:
    from pipelines.lineage.mirror import RunMirror
    from pipelines.lineage.tracker import Tracker

    return RunMirror(store, run, Tracker(store))


def _once(store: Path, run: str) -> None:
    _open(store, run).catch_up()


def _follow(store: Path, run: str) -> None:
    """Catch up at every bell; a failure on the way is only an end when it is still there at the end."""
    os.nice(NICENESS)
    mirror: RunMirror | None = None
    bells = _Bells(sys.stdin.fileno())
    for _ in bells:
        try:
            mirror = mirror or _open(store, run)
            mirror.catch_up()
            bells.pause = PAUSE_SECONDS
        # Any failure of a tracking server, now, may be gone in a minute; the run goes on meanwhile.
        except Exception:
            traceback.print_exc()
            mirror, bells.pause = None, RETRY_SECONDS
    mirror = mirror or _open(store, run)
    mirror.catch_up()
    mirror.interrupted()


class _Bells:
    """Iterates once for each burst of bytes on a pipe, at most once in `pause` seconds, until the pipe ends."""

    def __init__(self, pipe: int) -> None:
        self.pause = PAUSE_SECONDS
        self._pipe = pipe

    def __iter__(self) -> Iterator[None]:
        ready_at = 0.0
        while os.read(self._pipe, 65536):
            while (left := ready_at - time.monotonic()) > 0:
                if select.select([self._pipe], [], [], left)[0] and not os.read(self._pipe, 65536):
                    return
            yield
            ready_at = time.monotonic() + self.pause


if __name__ == "__main__":
    sys.exit(main())
