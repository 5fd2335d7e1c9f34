"""Writes the report of a run beside its journal."""

from __future__ import annotations

from pathlib import Path

from pipelines.lineage.view import RunView
from pipelines.report.figures import curve_galleries, report_galleries
from pipelines.report.gather import gather
from pipelines.report.models import model_table
from pipelines.report.render import render
from pipelines.running.journal import Event, Journal
from pipelines.store import Manifest, Store
from pipelines.store.contents import write_atomically

STATE_MARK = '<html lang="en" data-state="{}">'
"""How the page says which state of the run it shows."""


def report_file(store: Store, run: str) -> Path:
    """Where the report of a run lies, or would."""
    return store.run_directory(run) / "report.html"


def write_report(store: Store, run: str, end: Event | None = None) -> Path:
    """Make the report of `run` from its journal and the store, and write it; returns where.

    `end` is a `run-finished` event that the journal does not hold yet. Raises UserError for a damaged journal and
    OSError when the file cannot be written.
    """
    events = Journal(store.run_directory(run) / "journal.jsonl").read() + ([end] if end else [])
    manifests = _manifests(store, events)
    report = gather(events, manifests)
    page = render(
        report,
        model_table(report.stages),
        report_galleries(report.stages, manifests, store),
        curve_galleries(report.stages),
    )
    file = report_file(store, run)
    write_atomically(file, page.encode())
    return file


def current_report(store: Store, run: str) -> Path:
    """The report of `run`: the one that is there when it shows how the run ended, else a new one."""
    view = RunView()
    for event in Journal(store.run_directory(run) / "journal.jsonl").read():
        view.apply(event)
    file = report_file(store, run)
    if view.state != "running" and file.exists() and _shows(file, view.state):
        return file
    return write_report(store, run)


def _shows(file: Path, state: str) -> bool:
    with file.open(encoding="utf-8", errors="replace") as page:
        return STATE_MARK.format(state) in page.read(200)


def _manifests(store: Store, events: list[Event]) -> dict[str, Manifest]:
    """The manifests of the stages that have a result, by the stage's name."""
    uses = {spec["name"]: spec.get("uses", "") for event in events for spec in event.get("stages") or ()}
    found = {
        event["stage"]: store.find(uses[event["stage"]], event["key"])
        for event in events
        if event["event"] == "stage-finished" and event.get("outputs") and event.get("key") and event["stage"] in uses
    }
    return {stage: manifest for stage, manifest in found.items() if manifest is not None}
