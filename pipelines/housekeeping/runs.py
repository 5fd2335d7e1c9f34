"""What each run used and made, as its journal tells: the ground on which results stay or go.

A run whose journal is not here is known by the results that carry its name.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from pipelines.housekeeping.files import StoreFiles
from pipelines.store import Manifest
from pipelines.store.store import KEY_LENGTH

Short = tuple[str, str]
"""A result by method and the first `KEY_LENGTH` digits of its key, as its directory is named."""
TELLING = (b'"run-started"', b'"stage-started"', b'"stage-finished"', b'"run-finished"')


def short(method: str, key: str) -> Short:
    """The short name of a result."""
    return method, key[:KEY_LENGTH]


@dataclass
class RunRecord:
    """One run."""

    name: str
    pipeline: str = ""
    began: float = 0.0
    """Seconds since the epoch."""
    ended: float = 0.0
    state: str = "running"
    methods: dict[str, str] = field(default_factory=dict)
    """The method of each stage, in the order of the file."""
    results: dict[str, Short] = field(default_factory=dict)
    """What each stage has, made or taken over."""
    pending: dict[str, str] = field(default_factory=dict)
    """Key of each stage that was started and has no result."""

    @property
    def last(self) -> float:
        """When it last did something."""
        return max(self.began, self.ended)


def read_runs(files: StoreFiles, manifests: Iterable[Manifest]) -> dict[str, RunRecord]:
    """Every run by name, oldest first."""
    runs = {record.name: record for record in _journals(files)}
    for manifest in manifests:
        began = float(manifest.evidence.get("started", 0.0))
        run = runs.get(manifest.run)
        if run is None and manifest.run:
            pipeline = manifest.run.partition("-")[2].partition("-")[2].rpartition("-")[0]
            run = runs[manifest.run] = RunRecord(manifest.run, pipeline, began, state="elsewhere")
        if run is not None and run.state == "elsewhere":
            run.results[manifest.stage] = short(manifest.method, manifest.key)
            run.ended = max(run.ended, began + float(manifest.evidence.get("seconds", 0.0)))
    return dict(sorted(runs.items(), key=lambda item: (item[1].began, item[0])))


def _journals(files: StoreFiles) -> Iterator[RunRecord]:
    for path in sorted((files.root / "runs").glob("*/journal.jsonl")):
        yield _fold(path.parent.name, path.read_bytes())


def _fold(name: str, journal: bytes) -> RunRecord:
    record = RunRecord(name)
    for event in _events(journal):
        _apply(record, event)
    return record


def _events(journal: bytes) -> Iterator[dict[str, Any]]:
    """The events that change a state; a damaged line is passed over, for the rest still tells what is in use."""
    for line in journal.splitlines():
        if any(word in line for word in TELLING):
            try:
                event = json.loads(line)
            except ValueError:
                continue
            if isinstance(event, dict) and "event" in event:
                yield event


def _apply(record: RunRecord, event: Mapping[str, Any]) -> None:
    record.ended = max(record.ended, float(event.get("time") or 0.0))
    match event["event"]:
        case "run-started":
            record.pipeline, record.began = str(event.get("pipeline", "")), float(event.get("time") or 0.0)
            record.state = "running"
            record.methods = {spec["name"]: spec.get("uses", "") for spec in event.get("stages") or ()}
        case "stage-started":
            record.pending[event["stage"]] = event.get("key") or ""
        case "stage-finished":
            if found := _result(record.methods.get(event["stage"], ""), event):
                record.results[event["stage"]] = found
                record.pending.pop(event["stage"], None)
        case "run-finished":
            record.state = str(event.get("state", ""))


def _result(method: str, event: Mapping[str, Any]) -> Short | None:
    """The result a stage ended with; `method` is that of the stage."""
    has_result = bool(event.get("outputs") and event.get("key"))
    return short(event.get("method") or method, event["key"]) if has_result else None
