"""Commands about runs that have been: `status`, `logs`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.text import Text

from pipelines.cli.console import new_console
from pipelines.cli.format import SHOWN, format_metrics
from pipelines.cli.options import print_json
from pipelines.cli.tables import grid
from pipelines.lineage.view import RunView
from pipelines.running.journal import Journal, list_runs, runs_called
from pipelines.running.stage_log import log_tail
from pipelines.spec.problems import nearest
from pipelines.spec.quantities import format_duration
from pipelines.store import Store
from stages.errors import UserError

if TYPE_CHECKING:
    from pipelines.remote.submission import Submission


def show_status(store: Store, run: str | None, submission: Submission | None = None, *, as_json: bool) -> None:
    """Print one run's stages, or every run for `all`; of a submitted run that has not begun, its job."""
    if run == "all":
        _show_runs(store, as_json=as_json)
        return
    if submission and submission.run not in list_runs(store.root):
        _show_job(submission, as_json=as_json)
        return
    view = read_run(store, find_run(store, run))
    if as_json:
        stages = {
            name: {"state": stage.state, "waits": stage.waits or None, "metrics": stage.metrics}
            for name, stage in view.stages.items()
        }
        print_json({"run": view.run, "state": view.state, "stages": stages})
        return
    console = new_console()
    console.print(f"{view.run}: {_told(store, view)}\n", markup=False)
    table = grid("", "stage", "method", "", "time", "result")
    for stage in view.stages.values():
        if stage.state == "left":
            continue
        mark, style = SHOWN[stage.state]
        clock = format_duration(stage.seconds) if stage.seconds else ""
        figures = Text(stage.waits or format_metrics(stage.metrics))
        table.add_row(Text(mark, style), Text(stage.name, style), stage.uses, Text(stage.state, style), clock, figures)
    console.print(table)


def _told(store: Store, view: RunView) -> str:
    """The state of a run; of one that goes on, who drives it, of one that died, why and what to do."""
    run = view.run
    if view.state == "died":
        reason = store.death_of(run) or "its end was not recorded"
        return f"died: {reason}\ngo on with: {store.command(f'resume {run}')}"
    holder = store.holder_of(run) if view.state == "running" else None
    return f"running: process {holder.pid} on {holder.host}" if holder and holder.host else view.state


def show_logs(store: Store, run: str | None, stage: str | None, lines: int) -> None:
    """Print the ends of the logs of a run's stages."""
    name = find_run(store, run)
    store.pull_run(name)
    view = read_run(store, name)
    if stage is not None and stage not in view.stages:
        raise UserError(f"run {name} has no stage {stage!r}", fix=nearest(stage, view.stages))
    directory = store.run_directory(name) / "logs"
    for entry in view.stages.values():
        log = directory / f"{entry.slug}.log"
        if stage in (None, entry.name):
            text = log_tail(log, lines) if log.exists() else f"(no log: {entry.state})"
            print(f"── {entry.name} {'─' * max(2, 76 - len(entry.name))}\n{text}")


def find_run(store: Store, name: str | None) -> str:
    """The run that `name` means (see `runs_called`); the newest for None. Raises UserError."""
    from pipelines.housekeeping.files import StoreFiles
    from pipelines.housekeeping.tags import run_tags

    store.pull_runs()
    names = list_runs(store.root)
    if not names:
        raise UserError(f"no runs in {store.location}", fix="regraft run PIPELINE, or point to a store with --store")
    if name is None:
        return names[-1]
    found = runs_called(name, names, lambda: run_tags(StoreFiles(store)))
    if len(found) != 1:
        problem = "no run" if not found else f"{len(found)} runs begin with"
        raise UserError(f"{problem} {name!r} in {store.location}", fix=nearest(name, found or names))
    return found[0]


def read_run(store: Store, run: str) -> RunView:
    """What the journal of `run` tells; a run whose driver died without a word is `died`."""
    view = RunView(run)
    journal = Journal(Path(store.run_directory(run)) / "journal.jsonl")
    for event in journal.read():
        view.apply(event)
    dead = view.state == "running" and store.death_of(run) != ""
    for event in journal.read() if dead else ():  # it may have come to its end meanwhile
        view.apply(event)
    if dead and view.state == "running":
        view.state = "died"
        for stage in view.stages.values():
            stage.state, stage.waits = "cancelled" if stage.state == "running" else stage.state, ""
    return view


def _show_job(submission: Submission, *, as_json: bool) -> None:
    """The job of a run that has no journal yet, or never had one."""
    job = submission.jobs().find(submission.run)
    state = job.status.lower() if job else "unknown to the cluster"
    if as_json:
        print_json({"run": submission.run, "state": state, "stages": {}})
        return
    print(f"{submission.run}: {state} at {submission.dashboard}, nothing in the store {submission.store} yet")
    if job and job.ended:
        print(submission.jobs().log(submission.run).strip() or job.message)


def _show_runs(store: Store, *, as_json: bool) -> None:
    rows: list[dict[str, Any]] = []
    store.pull_runs()
    for name in list_runs(store.root):
        view = read_run(store, name)
        states = [stage.state for stage in view.stages.values()]
        counts = {state: states.count(state) for state in dict.fromkeys(states)}
        rows.append({"run": name, "state": view.state, "seconds": view.seconds, "stages": counts})
    if as_json:
        print_json(rows)
        return
    table = grid("run", "", "time", "stages")
    for row in rows:
        clock = format_duration(row["seconds"]) if row["seconds"] is not None else ""
        stages = ", ".join(f"{count} {state}" for state, count in row["stages"].items())
        table.add_row(row["run"], Text(row["state"], SHOWN.get(row["state"], ("", ""))[1]), clock, stages)
    new_console().print(table)
