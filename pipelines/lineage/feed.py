"""What the driver holds of the mirror: a process to wake, and to wait for at the end. Imports no MLflow.

The mirror reads the journal by itself, so nothing has to pass through the pipe but the news that there is more to read.
A full pipe therefore loses nothing, and `wake` never waits.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pipelines
from pipelines.running.journal import run_directory


class Mirror:
    """The process that mirrors one run. Its failures never reach the run: `finish` tells of them."""

    def __init__(self, store: Path, run_id: str, resync: str) -> None:
        """Start mirroring run `run_id` of `store`, whose journal need not exist yet; `resync` is told on failure."""
        self._resync = resync
        self._log = run_directory(store, run_id) / "mirror.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._problem = ""
        command = [sys.executable, "-m", "pipelines.lineage", str(store.resolve()), run_id, "--follow"]
        try:
            self._log.parent.mkdir(parents=True, exist_ok=True)
            with self._log.open("wb") as log:
                self._process = subprocess.Popen(
                    command,
                    stdin=subprocess.PIPE,
                    stdout=log,
                    stderr=log,
                    env=_environment(),
                    # Ctrl-C is for the driver; the mirror stays to record how the run ended.
                    start_new_session=True,
                )
            assert self._process.stdin is not None
            os.set_blocking(self._process.stdin.fileno(), False)
        except OSError as problem:
            self._problem = f"the mirror did not start: {problem}"

    def wake(self) -> None:
        """Tell the mirror that the journal has grown."""
        if self._process is None or self._process.stdin is None or self._problem:
            return
        try:
            os.write(self._process.stdin.fileno(), b"\n")
        except BlockingIOError:
            pass  # The pipe is full of bells that the mirror has yet to hear.
        except (OSError, ValueError):
            self._problem = "the mirror ended before the run did"

    def finish(self, timeout_seconds: float) -> str | None:
        """Let the mirror come to the end; None when MLflow has everything, otherwise the problem in one line.

        A mirror that takes longer goes on by itself.
        """
        if self._process is None or self._process.stdin is None:
            return self._advice(self._problem)
        try:
            self._process.stdin.close()
            code = self._process.wait(timeout_seconds)
        except subprocess.TimeoutExpired:
            return self._advice(f"MLflow was not up to date after {timeout_seconds:g} s; the mirror goes on by itself")
        if code == 0:
            return None
        return self._advice(self._last_words() or self._problem or f"the mirror ended with code {code}")

    def _last_words(self) -> str:
        lines = self._log.read_text("utf-8", errors="replace").split("\n") if self._log.exists() else []
        return next((line.strip() for line in reversed(lines) if line.strip()), "")

    def _advice(self, problem: str) -> str:
        return f"{problem}; `{self._resync}` completes it (details: {self._log})"


def _environment() -> dict[str, str]:
    """The driver's environment, in which this same package is found from any directory."""
    root = str(Path(pipelines.__file__).parents[1])
    paths = [root, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths))}
