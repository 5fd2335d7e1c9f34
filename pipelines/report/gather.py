"""What the report of a run says, as plain values: the fold of the journal's events with the stages' manifests. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pipelines.lineage.redact import Redactor
from pipelines.lineage.view import REUSED, RunView, StageView
from pipelines.report.values import GateReport, Link, RunReport, StageReport
from pipelines.running.journal import Event
from pipelines.store import Manifest


def gather(events: Iterable[Event], manifests: Mapping[str, Manifest]) -> RunReport:
    """The report of the run whose journal holds `events`; `manifests` of its stages, by name, as far as there are any.

    A run that goes on, or died, is told as far as it came. Secrets are masked.
    """
    fold = _Fold()
    for event in events:
        fold.apply(event)
    started, view = fold.view.started, fold.view
    redactor = Redactor(started)
    resolved = (started.get("resolved") or {}).get("stages") or {}
    stages = _Stages(fold, manifests, resolved, redactor)
    return RunReport(
        run=started.get("run", ""),
        pipeline=started.get("pipeline", ""),
        description=redactor.text(started.get("description") or ""),
        state=view.state,
        seconds=view.seconds,
        began=float(started.get("time", 0.0)),
        command=redactor.text(started.get("command") or ""),
        store=redactor.text(started.get("store") or ""),
        seed=started.get("seed"),
        overrides=tuple(redactor.text(text) for text in started.get("overrides") or ()),
        git=started.get("git") or {},
        versions=started.get("versions") or {},
        machine=started.get("machine") or {},
        stages=tuple(stages.report(stage) for stage in view.stages.values()),
        rerun_of=started.get("rerun_of") or "",
        resumes=started.get("resumes") or "",
    )


class _Fold:
    """The events of a run, sorted by what they are about."""

    def __init__(self) -> None:
        self.view = RunView()
        self.ends: dict[str, Event] = {}
        self.points: dict[str, dict[str, dict[int, float]]] = {}
        self.messages: dict[str, list[str]] = {}

    def apply(self, event: Event) -> None:
        """Take in one event. A step that a retry went through again counts with its later value."""
        self.view.apply(event)
        match event["event"]:
            case "stage-finished":
                self.ends[event["stage"]] = event
            case "message":
                self.messages.setdefault(event["stage"], []).append(str(event.get("text", "")))
            case "curve":
                curves = self.points.setdefault(event["stage"], {})
                for name, value in (event.get("values") or {}).items():
                    curves.setdefault(name, {})[int(event["step"])] = float(value)


@dataclass(frozen=True)
class _Stages:
    """Puts together what is known of each stage from the journal, the resolved file and its manifest."""

    fold: _Fold
    manifests: Mapping[str, Manifest]
    resolved: Mapping[str, Mapping[str, Any]]
    redactor: Redactor

    def report(self, stage: StageView) -> StageReport:
        """One stage."""
        end, entry = self.fold.ends.get(stage.name, {}), self.resolved.get(stage.name) or {}
        manifest = self.manifests.get(stage.name)
        evidence = end.get("evidence") or (manifest.evidence if manifest else {})
        points = self.fold.points.get(stage.name) or {}
        return StageReport(
            name=stage.name,
            slug=stage.slug,
            uses=stage.uses,
            state=stage.state,
            upstream=stage.upstream,
            attempt=stage.attempt or 1,
            seconds=evidence.get("seconds") if stage.state in REUSED else stage.seconds,
            producer=(stage.producer or "") if stage.state in REUSED else "",
            reason=self.redactor.text(end.get("reason") or ""),
            seed=entry.get("seed"),
            params=self.redactor.tree(stage.params),
            execution=self.redactor.tree(stage.execution),
            resources=stage.resources,
            versions=evidence.get("versions") or {},
            commit=(evidence.get("git") or {}).get("commit", ""),
            peak_memory_bytes=evidence.get("peak_memory_bytes"),
            metrics=stage.metrics,
            inputs=self._inputs(end, entry),
            outputs=self._outputs(stage.name),
            gates=_gates(stage, entry.get("expect") or {}, end),
            curves={name: tuple(sorted(values.items())) for name, values in points.items()},
            messages=tuple(self.redactor.text(text) for text in self.fold.messages.get(stage.name, ())),
            error={name: self.redactor.text(text) for name, text in (end.get("error") or {}).items() if text},
        )

    def _inputs(self, end: Event, entry: Mapping[str, Any]) -> tuple[Link, ...]:
        """As the journal tells; for a stage that did not finish well, as the file names them."""
        if end.get("inputs"):
            return tuple(self._link(item, item["stage"], item["output"]) for item in end["inputs"])
        return tuple(
            self._made(name, reference)
            for name, references in (entry.get("inputs") or {}).items()
            for reference in ([references] if isinstance(references, str) else references)
        )

    def _made(self, name: str, reference: str) -> Link:
        stage, _, output = reference.rpartition(".")
        for item in self.fold.ends.get(stage, {}).get("outputs") or []:
            if item["name"] == output:
                return self._link({**item, "name": name}, stage, output)
        return Link(name, stage, output)

    def _outputs(self, stage: str) -> tuple[Link, ...]:
        return tuple(
            self._link(item, stage, item["name"]) for item in self.fold.ends.get(stage, {}).get("outputs") or []
        )

    def _link(self, item: Mapping[str, Any], stage: str, output: str) -> Link:
        size = int(item.get("bytes") or 0)
        manifest = self.manifests.get(stage)
        record = manifest.outputs.get(output) if manifest else None
        files = record.files if record else ()
        weights = sum(file.size for file in files if file.path.endswith(".safetensors"))
        uri = self.redactor.text(item.get("uri") or "")
        schema = (record.schema if record else None) or ""
        return Link(item["name"], stage, output, item["kind"], item["digest"], size, weights or size, uri, schema)


def _gates(stage: StageView, expect: Mapping[str, str], end: Event) -> tuple[GateReport, ...]:
    """A stage is done only when all its gates hold; the message of one that failed names those that did not."""
    message = (end.get("error") or {}).get("message", "")

    def holds(metric: str) -> bool | None:
        if stage.state in ("done", "cached"):  # what is kept was not judged
            return True
        measured = stage.state == "failed" and bool(end.get("outputs"))
        return f"expected {metric} " not in message if measured else None

    return tuple(
        GateReport(metric, bound, stage.metrics.get(metric), holds(metric)) for metric, bound in expect.items()
    )
