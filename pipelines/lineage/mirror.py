"""Applies the events of one journal to MLflow: a run for the pipeline, a nested run for each attempt of a stage.

Every step may be repeated, so the cursor is moved only after its events are in MLflow: a mirror killed at any point is
resumed by starting it again. Times come from the journal, so a run mirrored a week later shows when it happened.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from mlflow.entities import Metric

from pipelines.lineage import kin, note, records
from pipelines.lineage.acceptance import accepted_for
from pipelines.lineage.cursor import Cursor, identity
from pipelines.lineage.figures import final_figures
from pipelines.lineage.links import Linker
from pipelines.lineage.redact import Redactor
from pipelines.lineage.tracker import PARENT, Tracker
from pipelines.lineage.view import RunView, StageView
from pipelines.running.journal import Event, Journal, run_directory
from pipelines.running.result import GOOD
from stages.errors import UserError

CHUNK = 2000
"""Events between two moves of the cursor."""
STATUS = {
    **dict.fromkeys(GOOD, "FINISHED"),
    "failed": "FAILED",
    "skipped": "KILLED",
    "cancelled": "KILLED",
}


class RunMirror:
    """One run of the store and its reflection in MLflow. Only one may exist for a run at a time (`mirror.lock`)."""

    def __init__(self, store: Path, run: str, tracker: Tracker) -> None:
        self.tracker = tracker
        self.store = store
        self.directory = run_directory(store, run)
        self.journal = Journal(self.directory / "journal.jsonl")
        self.cursor = Cursor.load(self.directory)
        self.view = RunView()
        self.redactor = Redactor()
        self._handlers = {
            "run-started": self._on_run_started,
            "stage-started": self._on_stage_started,
            "curve": self._on_curve,
            "stage-finished": self._on_stage_finished,
            "run-finished": self._on_run_finished,
        }
        self._links: Linker | None = None
        self._before = ""
        """The runs that this one goes back to, as Markdown, and as tags."""
        self._back: dict[str, str] = {}
        self._followers: kin.Followers = {}
        self._points: dict[str, list[Metric]] = {}
        self._ready: set[str] = set()
        """Attempts whose run this process has made, or completed."""
        self._running: set[str] = set()
        """Attempts whose run is open in MLflow."""
        self._num_seen = self._num_applied = 0
        self._stale = False
        self._last_ms = 0

    def catch_up(self) -> int:
        """Bring MLflow up to the end of the journal; returns how many events that took."""
        events = self.journal.read()
        before = self._num_applied
        for start in range(0, len(events), CHUNK):
            for event in events[start : start + CHUNK]:
                self._take(event)
            self._flush_points()
            self._save()
        if self._stale:
            self._redraw()
        return self._num_applied - before

    def interrupted(self) -> None:
        """Close what is open: the driver is gone and left no end in the journal."""
        if self.view.state != "running":
            return
        for stage in self.view.stages.values():
            if stage.state == "running":
                stage.state = "cancelled"
        self.view.state = "interrupted"
        self._close_children(self._last_ms, "cancelled", "the driver of the run is gone")
        self.tracker.log(self.cursor.parent, tags={"regraft.state": "interrupted"})
        self.tracker.client.set_terminated(self.cursor.parent, "KILLED", self._last_ms)
        self._redraw()

    def _take(self, event: Event) -> None:
        self._num_seen += 1
        self._last_ms = int(event["time"] * 1000)
        self.view.apply(event)
        if event["event"] == "run-started" and self._links is None:
            self._open(event)
        if self._links is None:
            raise UserError("the journal does not begin with `run-started`", where=str(self.journal.path))
        if self._num_seen <= self.cursor.lines:
            return
        self._num_applied += 1
        if handler := self._handlers.get(event["event"]):
            handler(event)
            self._stale = self._stale or event["event"] != "curve"

    def _open(self, event: Event) -> None:
        """Find what MLflow has of this run; a cursor that speaks of another database counts for nothing."""
        uid = identity(event)
        self.redactor = Redactor(event)
        experiment = self.tracker.experiment(event["pipeline"], self.redactor.text(event.get("description") or ""))
        found = self.tracker.runs_of(experiment, uid)
        runs = {name: run.info.run_id for name, run in found.items()}
        self._before, self._back = kin.ancestors(self.tracker, event)
        self._followers = kin.followers_of(found[PARENT].data.tags) if PARENT in found else {}
        self._running = {name for name, run in found.items() if run.info.status == "RUNNING" and name != PARENT}
        parent = runs.pop(PARENT, "")
        if self.cursor.uid != uid or self.cursor.tracking != self.tracker.uri or not parent:
            self.cursor = Cursor(uid=uid, tracking=self.tracker.uri)
        self.cursor.experiment, self.cursor.parent, self.cursor.children = experiment, parent, runs
        self._links = Linker(
            self.tracker, self.store, experiment, uid, event["run"], self.redactor, models=self.cursor.models
        )
        self._links.recover()

    def _on_run_started(self, event: Event) -> None:
        tags = records.run_tags(self.view, self.cursor.uid, self.redactor) | self._back
        self.cursor.parent = self._ensure(self.cursor.parent, event["run"], tags)
        self.tracker.log(self.cursor.parent, params=records.run_params(self.view, self.redactor), tags=tags)
        self._attach("pipeline.yaml", self.redactor.document(event.get("resolved") or {}))
        kin.follow(self.tracker, event, self.cursor.parent)
        around = {name: event.get(name) for name in ("command", "versions", "machine")}
        self._attach("environment.json", json.dumps(self.redactor.tree(around), indent=2))

    def _on_stage_started(self, event: Event) -> None:
        stage = self.view.stage(event)
        if stage.attempt_id not in self._running:
            self._close_children(self._last_ms, "failed", "another attempt took its place", of=stage.slug)
        self._ensure_child(stage, event)

    def _on_curve(self, event: Event) -> None:
        stage = self.view.stage(event)
        child = self._ensure_child(stage, event)
        values, step = records.clean_names(event.get("values") or {}), int(event["step"])
        points = self._points.setdefault(child, [])
        points += [Metric(name, float(value), self._last_ms, step) for name, value in values.items()]

    def _on_stage_finished(self, event: Event) -> None:
        assert self._links is not None
        stage = self.view.stage(event)
        child = self._ensure_child(stage, event)
        self._flush_points()
        read, made = self._links.link(stage, event, child)
        tags = records.result_tags(event, self.redactor)
        tags |= records.drift_tags(accepted_for(self.store, event), self.redactor)
        origin = self._links.origin(event, tags)
        tags["mlflow.note.content"] = note.stage_note(stage, event, origin, self._links.addresses(), self.redactor)
        if records.PRODUCER in tags:  # the producer's figures are the model's already
            read, made = [], []
        self.tracker.log(child, metrics=final_figures(stage, event, read, made, self._last_ms), tags=tags)
        if event["state"] == "done":
            self._links.copy_reports(event, child)
            self._links.trace_rollouts(stage, event, child, self._last_ms)
        self._end_child(stage.attempt_id, STATUS[event["state"]], self._last_ms)

    def _on_run_finished(self, event: Event) -> None:
        self._close_children(self._last_ms, "cancelled", "the run ended")
        metrics = [Metric(name, value, self._last_ms, 0) for name, value in records.run_metrics(self.view).items()]
        self.tracker.log(self.cursor.parent, metrics=metrics, tags={"regraft.state": event["state"]})
        page = self.directory / "report.html"
        if page.exists():
            self.tracker.client.log_artifact(self.cursor.parent, str(page))
        self.tracker.client.set_terminated(self.cursor.parent, STATUS[event["state"]], self._last_ms)

    def _ensure(self, known: str, name: str, tags: Mapping[str, str], start_ms: int | None = None) -> str:
        """The run `known`, running again, or a new one."""
        if known:
            self.tracker.client.update_run(known, status="RUNNING")
            return known
        start = self._last_ms if start_ms is None else start_ms
        return self.tracker.client.create_run(self.cursor.experiment, start, dict(tags), name).info.run_id

    def _ensure_child(self, stage: StageView, event: Event) -> str:
        """The run of the stage's attempt, open and with its parameters."""
        attempt = stage.attempt_id
        if attempt not in self._ready:
            tags = records.stage_tags(self.view, stage, self.cursor.uid, event.get("key"), self.redactor)
            tags["mlflow.parentRunId"] = self.cursor.parent
            name = stage.name if stage.attempt < 2 else f"{stage.name} (attempt {stage.attempt})"
            took = event.get("seconds") or 0.0 if event.get("state") in ("done", "failed") else 0.0
            known = self.cursor.children.get(attempt, "")
            child = self._ensure(known, name, tags, self._last_ms - int(took * 1000))
            self.cursor.children[attempt] = child
            self.tracker.log(child, params=records.stage_params(stage, self.redactor))
            self._ready.add(attempt)
            self._running.add(attempt)
        return self.cursor.children[attempt]

    def _close_children(self, end_ms: int, state: str, why: str, *, of: str = "") -> None:
        """End the attempts, of one stage or of all, that never came to an end of their own."""
        for attempt in sorted(self._running):
            if not of or attempt.rpartition("#")[0] == of:
                tags = {"regraft.state": state, "regraft.reason": why}
                self.tracker.log(self.cursor.children[attempt], tags=tags)
                self._end_child(attempt, STATUS[state], end_ms)

    def _end_child(self, attempt: str, status: str, end_ms: int) -> None:
        self.tracker.client.set_terminated(self.cursor.children[attempt], status, end_ms)
        self._ready.discard(attempt)
        self._running.discard(attempt)

    def _flush_points(self) -> None:
        for child, points in self._points.items():
            self.tracker.log(child, metrics=points)
        self._points.clear()

    def _redraw(self) -> None:
        self._attach("dag.svg", note.picture(self.view))
        cursor = self.cursor
        later = kin.followers_text(self.tracker, self._followers)
        ids = (cursor.experiment, cursor.parent, cursor.children, cursor.lines)
        text = note.run_note(self.view, *ids, before=self._before, after=later)
        self.tracker.log(cursor.parent, tags={"mlflow.note.content": text})
        self._stale = False

    def _attach(self, name: str, text: str) -> None:
        self.tracker.client.log_text(self.cursor.parent, text, name)

    def _save(self) -> None:
        self.cursor.lines = max(self.cursor.lines, self._num_seen)
        self.cursor.save(self.directory)
