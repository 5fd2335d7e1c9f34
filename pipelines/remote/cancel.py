"""`regraft cancel`: ask the driver to stop, wait until it has, and look whether anything is left.

The signal goes to the driver alone, so it is sent from the machine the driver is on: this one, or the head of the
cluster, where a small job runs this same command.
"""

from __future__ import annotations

import os
import shlex
import signal
import sys
import time
from typing import TYPE_CHECKING, Final

from clusters import leftovers
from pipelines.remote.submission import Submission
from pipelines.running import stopping
from pipelines.running.journal import Journal
from pipelines.spec.quantities import format_duration
from stages.errors import StageError, UserError

if TYPE_CHECKING:
    from clusters.jobs import Job, Jobs
    from pipelines.store import Store
    from pipelines.store.holder import Holder

MARGIN_SECONDS: Final = 60.0
"""What a driver may take beyond the grace: to kill, to look, to write its report and the end of its journal."""


def cancel(store: Store, run: str, grace_seconds: float, submission: Submission | None) -> list[str]:
    """Stop `run` and return what is left of it. Raises UserError when its driver cannot be reached from here."""
    store.pull_run(run)
    holder = store.holder_of(run)
    if holder is not None and holder.is_local:
        return _cancel_here(store, holder, grace_seconds)
    if submission is not None:
        return _cancel_there(store, submission, grace_seconds)
    if holder is None:
        raise UserError(f"run {run} goes on nowhere: it has ended", fix=store.command(f"status {run}"))
    raise _elsewhere(store, run, holder)


def _elsewhere(store: Store, run: str, holder: Holder) -> UserError:
    message = f"the driver of run {run} is process {holder.pid} on {holder.host}"
    return UserError(message, fix=f"{store.command(f'cancel {run}')} there; for a submitted run: --cluster PROFILE")


def _cancel_here(store: Store, holder: Holder, grace_seconds: float) -> list[str]:
    directory, run = store.run_directory(holder.run), holder.run
    print(f"asked {run} to stop (process {holder.pid}); its stages have {format_duration(grace_seconds)}", flush=True)
    stopping.request(directory, grace_seconds)
    _send(holder, signal.SIGTERM)
    if not leftovers.wait_until(lambda: holder.is_gone, grace_seconds + MARGIN_SECONDS):
        print(f"process {holder.pid} has not stopped: killing it", file=sys.stderr)
        _send(holder, signal.SIGKILL)
    left = leftovers.end_processes(run, patience_seconds=2.0)
    return sorted({*_left(store, run), *left})


def _send(holder: Holder, number: signal.Signals) -> None:
    """Signal the driver, unless it has ended. Raises UserError where that is not allowed."""
    try:
        if not holder.is_gone:
            os.kill(holder.pid, number)
    except ProcessLookupError:
        return
    except PermissionError:
        message = f"process {holder.pid}, which drives run {holder.run}, belongs to another user"
        raise UserError(message, fix="cancel it as that user") from None


def _left(store: Store, run: str) -> list[str]:
    """What the driver itself found, which knows the cluster's tables; processes of this machine are counted here."""
    events = Journal(store.run_directory(run) / "journal.jsonl").read()
    found = [event["left"] for event in events if event["event"] == "run-stopped"]
    return [text for text in (found[-1] if found else []) if not text.startswith("process ")]


def _cancel_there(store: Store, submission: Submission, grace_seconds: float) -> list[str]:
    from clusters.jobs import JobError

    jobs = submission.jobs()
    try:
        job = jobs.find(submission.run)
        if job is None or job.ended:
            state = f"has ended ({job.status})" if job else f"is not known at {submission.dashboard}"
            raise UserError(f"run {submission.run} {state}", fix=store.command(f"status {submission.run}"))
        if job.status == "PENDING":
            jobs.stop(job.name)
            return []
        return _cancel_by_job(store, jobs, job, submission, grace_seconds)
    except JobError as error:
        raise UserError(str(error), fix=error.fix) from None


def _cancel_by_job(store: Store, jobs: Jobs, job: Job, submission: Submission, grace_seconds: float) -> list[str]:
    """Run this command where the driver is; stop the job by Ray's own means if that fails."""
    from clusters.jobs import Order

    arguments = ["cancel", job.name, "--grace", f"{grace_seconds:g}s", "--store", submission.store]
    name = f"{job.name}-cancel-{int(time.time())}"
    command = f"exec python -m pipelines.remote.driver {shlex.join(arguments)}"
    jobs.submit(Order(name, command, job.package, {}, submission.values(), {"regraft_cancels": job.name}))
    leftovers.wait_until(lambda: _ended(jobs, name), grace_seconds + 2 * MARGIN_SECONDS)
    _, _, told = jobs.log(name).partition(f"{command}\n")  # after the lines of Ray itself
    print(told.strip())
    canceller = jobs.find(name)
    went_well = canceller is not None and canceller.status == "SUCCEEDED"
    if not (went_well and leftovers.wait_until(lambda: _ended(jobs, job.name), MARGIN_SECONDS)):
        jobs.stop(job.name)
        fix = f"{store.command(f'status {job.name}')}; what the lines above name may still be there"
        raise StageError(f"run {job.name} did not stop as asked; Ray has been told to end its job", fix=fix)
    return []


def _ended(jobs: Jobs, name: str) -> bool:
    job = jobs.find(name)
    return job is None or job.ended
