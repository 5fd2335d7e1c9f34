"""`regraft` as a user runs it: in a directory, as a process of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipelines.running.journal import Journal

ROOT = Path(__file__).parents[2]
PATIENCE_SECONDS = 240


@dataclass
class Regraft:
    directory: Path
    variables: dict[str, str] = field(default_factory=dict)

    def start(self, *arguments: str, in_background: bool = False) -> subprocess.Popen[str]:
        """The command as a process that goes on; its output is in the file `output`.

        `in_background`, as a shell without job control starts it, it ignores Ctrl-C; else not, whatever we do.
        """
        answer = signal.SIG_IGN if in_background else signal.SIG_DFL
        with self.output_file.open("a") as output:
            return subprocess.Popen(
                self._command(arguments),
                stdout=output,
                stderr=output,
                text=True,
                preexec_fn=lambda: signal.signal(signal.SIGINT, answer),
                **self._place(),
            )

    def __call__(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """The command to its end."""
        return subprocess.run(
            self._command(arguments), capture_output=True, text=True, timeout=PATIENCE_SECONDS, **self._place()
        )

    @property
    def output_file(self) -> Path:
        """Beside the directory, as what the client remembers is: what is in it is sent along."""
        return self.directory.parent / "output"

    @property
    def output(self) -> str:
        return self.output_file.read_text()

    def ask_jobs(self, dashboard: str, what: str) -> str:
        """Print something of the cluster's jobs, in a fresh process: Ray reads the token once in each."""
        code = f"from clusters.jobs import Jobs; print(Jobs({dashboard!r}).{what})"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, **self._place())
        return done.stdout.strip()

    def write(self, text: str, name: str = "pipeline.yaml") -> str:
        (self.directory / name).write_text(text)
        return name

    @property
    def runs(self) -> list[str]:
        """Names of the runs in the store, oldest first."""
        return sorted(path.parent.name for path in self.directory.glob(".regraft/runs/*/journal.jsonl"))

    def events(self, run: str) -> list[dict[str, Any]]:
        return Journal(self.directory / ".regraft" / "runs" / run / "journal.jsonl").read()

    def mark(self, run: str) -> dict[str, Any]:
        """Who drives the run."""
        return json.loads((self.directory / ".regraft" / "runs" / run / "open").read_text())

    def states(self, run: str) -> dict[str, str]:
        return {event["stage"]: event["state"] for event in self.events(run) if event["event"] == "stage-finished"}

    def digests(self, run: str) -> dict[str, str]:
        """Digest of each stage's first output."""
        finished = [event for event in self.events(run) if event["event"] == "stage-finished" and event["outputs"]]
        return {event["stage"]: event["outputs"][0]["digest"] for event in finished}

    def await_event(self, **wanted: Any) -> str:
        """Wait for an event of the newest run; returns the run's name."""

        def seen() -> bool:
            events = self.events(self.runs[-1]) if self.runs else []
            return any(wanted.items() <= event.items() for event in events)

        until(seen, f"{wanted}\n{self.output if (self.directory / 'output').exists() else ''}")
        return self.runs[-1]

    def await_steps(self, steps: int) -> str:
        """Wait until training has made this many steps in the newest run."""

        def made() -> bool:
            events = self.events(self.runs[-1]) if self.runs else []
            return any(event["event"] == "curve" and event["step"] >= steps for event in events)

        until(made, f"{steps} steps\n{self.output if (self.directory / 'output').exists() else ''}")
        return self.runs[-1]

    def _command(self, arguments: tuple[str, ...]) -> list[str]:
        return [sys.executable, "-m", "pipelines", *arguments]

    def _place(self) -> dict[str, Any]:
        own = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "REGRAFT_CACHE": str(self.directory.parent / "cache")}
        return {"cwd": self.directory, "env": {**os.environ, **own, **self.variables}}


def until(true: Callable[[], bool], what: str) -> None:
    """Wait; no test depends on how long."""
    end = time.monotonic() + PATIENCE_SECONDS
    while not true():
        assert time.monotonic() < end, f"never came: {what}"
        time.sleep(0.2)
