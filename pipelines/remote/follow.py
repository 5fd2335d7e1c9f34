"""`regraft logs -f`: what stages write, as they write it, until the run is over. It never ends without saying why."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pipelines.lineage.view import RunView, StageView
from pipelines.running.journal import Journal
from pipelines.running.result import GOOD
from pipelines.spec.problems import nearest
from stages.errors import RegraftError, StageError, UserError

if TYPE_CHECKING:
    from clusters.jobs import Job
    from pipelines.remote.submission import Submission
    from pipelines.store import Store

HERE_SECONDS: Final = 0.3
THERE_SECONDS: Final = 2.0
"""Between two looks at a store that is elsewhere."""
RULE_WIDTH: Final = 76


@dataclass
class Tail:
    """The logs of a run, printed as they grow; a rule names the stage whenever it changes."""

    directory: Path
    only: str | None
    lines: int
    offsets: dict[str, int] = field(default_factory=dict)
    speaker: str = ""
    waits: dict[str, str] = field(default_factory=dict)
    """What each stage was last said to wait for."""

    def print_new(self, stages: list[StageView]) -> None:
        """Print whole lines that are new; of what was there at first only the end."""
        for stage in stages:
            if self.only not in (None, stage.name):
                continue
            if stage.waits and stage.waits != self.waits.get(stage.name):
                print(f"── {stage.name} {stage.waits}", flush=True)
                self.waits[stage.name] = stage.waits
            log = self.directory / "logs" / f"{stage.slug}.log"
            if log.exists():
                self._print(stage.name, log)

    def _print(self, stage: str, log: Path) -> None:
        first = log.name not in self.offsets
        offset = self.offsets.setdefault(log.name, 0)
        if log.stat().st_size < offset:
            offset = 0
        with log.open("rb") as stream:
            stream.seek(offset)
            block = stream.read()
        block = block[: block.rfind(b"\n") + 1]
        self.offsets[log.name] = offset + len(block)
        lines = block.decode("utf-8", "replace").splitlines()
        for line in lines[-self.lines :] if first else lines:
            self._name(stage)
            print(line, flush=True)

    def _name(self, stage: str) -> None:
        if self.speaker != stage:
            self.speaker = stage
            print(f"── {stage} {'─' * max(2, RULE_WIDTH - len(stage))}", flush=True)


def follow(store: Store, run: str, stage: str | None, lines: int, submission: Submission | None) -> bool:
    """Print the logs of `run`, or of one stage, until it is over; whether it went well."""
    directory = store.run_directory(run)
    journal, view = Journal(directory / "journal.jsonl"), RunView(run)
    tail = Tail(directory, stage, lines)
    watch = _Link(store, run, submission)
    while True:
        reached = watch.refresh()
        for event in journal.read():
            view.apply(event)
        if view.started and stage is not None and stage not in view.stages:
            raise UserError(f"run {run} has no stage {stage!r}", fix=nearest(stage, view.stages))
        tail.print_new(list(view.stages.values()))
        if over := _over(view, stage) or (watch.over(view) if reached else ""):
            print(f"── {over}", flush=True)
            return _is_good(view, stage)
        time.sleep(HERE_SECONDS if store.location == str(store.root) else THERE_SECONDS)


class _Link:
    """The way to a run that may be elsewhere: brings its records here, and tells when they end unfinished."""

    def __init__(self, store: Store, run: str, submission: Submission | None) -> None:
        self.store, self.run, self.submission = store, run, submission
        self.trouble = ""
        self.waits = False

    def refresh(self) -> bool:
        """Bring what is new here; False while the store cannot be reached, which is told once."""
        try:
            self.store.pull_run(self.run)
        except RegraftError as error:
            if self.trouble != error.message:
                print(f"── {error.message}; trying again until Ctrl-C", file=sys.stderr, flush=True)
            self.trouble = error.message
            return False
        if self.trouble:
            print("── connected again", file=sys.stderr, flush=True)
        self.trouble = ""
        return True

    def over(self, view: RunView) -> str:
        """Why nothing more will come of a run whose journal has no end; "" while more may come."""
        if death := self.store.death_of(self.run):
            again = self.store.command(f"resume {self.run}")
            return f"run {self.run} ended without a word: {death}; go on with: {again}"
        if view.started or self.submission is None:
            return ""
        job = self._job(self.submission)
        if job is None:
            return f"the cluster at {self.submission.dashboard} does not know run {self.run}"
        if job.ended:
            return f"the driver of run {self.run} ended before it began ({job.status}):\n{self._driver_said(job)}"
        if not self.waits:
            self.waits = True
            print(f"── run {self.run} has not begun: its job is {job.status}", flush=True)
        return ""

    def _job(self, submission: Submission) -> Job | None:
        from clusters.jobs import JobError

        try:
            return submission.jobs().find(self.run)
        except JobError as error:
            raise StageError(
                f"run {self.run} has not begun, and its job cannot be asked: {error}", fix=error.fix
            ) from None

    def _driver_said(self, job: Job) -> str:
        assert self.submission is not None
        return self.submission.jobs().log(self.run).strip() or job.message


def _over(view: RunView, stage: str | None) -> str:
    if stage in view.stages and view.stages[stage].state not in ("waiting", "running"):
        return f"stage {stage} of run {view.run}: {view.stages[stage].state}"
    if view.state in ("waiting", "running"):
        return ""
    states = [each.state for each in view.stages.values()]
    counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    return f"run {view.run}: {view.state} ({counts})"


def _is_good(view: RunView, stage: str | None) -> bool:
    if stage in view.stages:
        return view.stages[stage].state in GOOD
    return view.state == "done"
