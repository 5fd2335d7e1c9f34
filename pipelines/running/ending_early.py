"""What happens to the stages of a run that is stopped, or that loses its cluster."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from pipelines.running.record import Failure
from pipelines.running.stopping import grace
from pipelines.spec.quantities import format_duration

if TYPE_CHECKING:
    from clusters.executor import Finished
    from pipelines.running.run import Runner
    from pipelines.running.task import Outcome


def wind_down(runner: Runner) -> None:
    """Let running stages save what they have and stop. Ctrl-C again, or the end of the grace, cuts it short."""
    runner.result.cancelled = True
    attempts, run = runner.attempts, runner.result.run
    end = time.monotonic() + (seconds := grace(runner.store.run_directory(run)))
    if not (attempts.running and seconds and attempts.executor and attempts.executor.ask_to_stop()):
        return
    for name in attempts.running:
        attempts.say(name, f"asked to stop within {format_duration(seconds)}; Ctrl-C again stops it now")
    while attempts.running and (left := end - time.monotonic()) > 0:
        for finished in attempts.executor.wait(left):
            _finish_late(runner, finished)


def _finish_late(runner: Runner, finished: Finished) -> None:
    """A stage ended while the run was winding down: its result counts, its failure is only told."""
    outcome: Outcome | None = finished.result
    if outcome is not None and outcome.manifest is not None:
        runner.finish(finished)
        return
    del runner.attempts.running[finished.name]
    runner.attempts.say(finished.name, outcome.message if outcome else finished.failure or "lost")


def cancel(runner: Runner) -> None:
    """Record that the run was stopped, with all that had not ended."""
    runner.result.cancelled = True
    for name, state in runner.result.states.items():
        if state in ("waiting", "running"):
            runner.result.states[name] = "cancelled"
            runner.record(runner.stages[name], "cancelled")


def tell_left(runner: Runner) -> None:
    """Look for what should be gone, and write down what was found."""
    if runner.attempts.executor is not None:
        runner.result.left = runner.attempts.executor.leftovers()
    runner.journal.write({"event": "run-stopped", "left": runner.result.left})


def lose(runner: Runner, what: str) -> None:
    """The cluster is gone, or never was: everything on it failed, and nothing more can start."""
    again = runner.store.command(f"resume {runner.result.run}")
    fix = f"start Ray again if it was not started by this run, then `{again}`"
    known = dict(runner.attempts.running) | {step.spec.name: (step, nr) for step, nr in runner.attempts.take_paused()}
    # An interrupt may have come when a stage was not noted as started, or no longer.
    begun = {*known, *(name for name, state in runner.result.states.items() if state == "running")}
    for name in runner.stages:
        if name in begun:
            step, attempt = known.get(name, (None, 0))
            runner.fail(runner.stages[name], Failure(f"{what} while the stage ran", fix), step, attempt)
    if runner.attempts.executor is None:  # the first stage was about to start
        first = next(name for name in runner.result.waiting() if not runner.frontier.missing[name])
        runner.fail(runner.stages[first], Failure(what, fix), attempt=1)
    for name in runner.result.waiting():
        runner.skip(name)
