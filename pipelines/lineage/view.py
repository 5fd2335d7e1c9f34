"""A run as its journal tells it so far: the fold of its events. Pure; knows nothing of MLflow."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

from pipelines.running.journal import Event

REUSED: Final = frozenset({"cached", "kept"})
"""States of a stage whose artifact an earlier run made."""


@dataclass
class StageView:
    """One stage of the run and what became of it."""

    name: str
    slug: str
    uses: str
    upstream: tuple[str, ...] = ()
    params: dict[str, Any] = field(default_factory=dict)
    execution: dict[str, Any] = field(default_factory=dict)
    resources: dict[str, Any] = field(default_factory=dict)
    state: str = "waiting"
    attempt: int = 0
    seconds: float | None = None
    producer: str | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    waits: str = ""
    """What it waits for before it can begin, as people read it."""
    last_steps: dict[str, int] = field(default_factory=dict)
    """The highest step of each curve: a final figure of the same name is logged there, or MLflow would not show it."""

    @property
    def attempt_id(self) -> str:
        """The name of the attempt in progress, or of the last one, within the run."""
        return f"{self.slug}#{self.attempt or 1}"


@dataclass
class RunView:
    """The run, its stages by name, and the event that started it."""

    run: str = ""
    started: Event = field(default_factory=dict)
    """Empty while the journal tells of no start."""
    stages: dict[str, StageView] = field(default_factory=dict)
    state: str = "waiting"
    seconds: float | None = None

    def apply(self, event: Event) -> None:
        """Take in one event; kinds that do not change the picture are passed over."""
        handlers = {
            "run-started": self._on_run_started,
            "stage-started": self._on_stage_started,
            "waits-for-room": self._on_room,
            "has-room": self._on_room,
            "curve": self._on_curve,
            "stage-finished": self._on_stage_finished,
            "run-finished": self._on_run_finished,
        }
        if handler := handlers.get(event["event"]):
            handler(event)

    def stage(self, event: Event) -> StageView:
        """The stage an event speaks of; a stage the start did not announce is taken in as it comes."""
        name = event["stage"]
        if name not in self.stages:
            self.stages[name] = StageView(name=name, slug=name, uses="")
        return self.stages[name]

    def count(self, *states: str) -> int:
        """How many stages are in one of `states`."""
        return sum(stage.state in states for stage in self.stages.values())

    def _on_run_started(self, event: Event) -> None:
        self.started, self.state, self.seconds = event, "running", None
        self.run = event.get("run") or self.run
        for spec in event.get("stages", []):
            self.stages[spec["name"]] = StageView(
                name=spec["name"],
                slug=spec.get("slug") or spec["name"],
                uses=spec.get("uses", ""),
                upstream=tuple(spec.get("upstream") or ()),
                params=spec.get("params") or {},
                execution=spec.get("execution") or {},
                resources=spec.get("resources") or {},
                state=spec.get("state") or "waiting",
            )

    def _on_stage_started(self, event: Event) -> None:
        stage = self.stage(event)
        stage.state, stage.attempt, stage.waits = "running", event.get("attempt") or 1, ""

    def _on_room(self, event: Event) -> None:
        self.stage(event).waits = event["text"] if event["event"] == "waits-for-room" else ""

    def _on_curve(self, event: Event) -> None:
        steps = self.stage(event).last_steps
        for name in event.get("values") or {}:
            steps[name] = max(steps.get(name, 0), int(event["step"]))

    def _on_stage_finished(self, event: Event) -> None:
        stage = self.stage(event)
        stage.state, stage.attempt = event["state"], event.get("attempt") or stage.attempt or 1
        stage.seconds, stage.producer = event.get("seconds"), event.get("producer")
        stage.metrics, stage.waits = event.get("metrics") or {}, ""

    def _on_run_finished(self, event: Event) -> None:
        self.state, self.seconds = event["state"], event.get("seconds")
