"""Runs a plan: starts what is ready, waits for events, publishes, records.

A stage whose inputs turned out as before is a hit and is not run. A failure stops only what depends on it. The executor
is made when the first stage has to run, so a run whose stages are all cached starts nothing.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from clusters.executor import Executor, Finished, OnEvent, Request
from pipelines.identity import code_of
from pipelines.journal import JournalWriter
from pipelines.plan import Plan, Step, learn, plan_stage
from pipelines.spec.pipeline import StageSpec
from pipelines.store import Manifest, Store
from pipelines.worker import InputRef, Outcome, Task
from stages.errors import UserError

State = Literal["waiting", "running", "done", "cached", "failed", "skipped", "cancelled"]
GOOD: Final = frozenset({"done", "cached"})
LONGEST_PAUSE_SECONDS: Final = 30.0
MakeExecutor = Callable[[OnEvent], Executor]


@dataclass(frozen=True)
class Failure:
    """Why a stage failed."""

    message: str
    fix: str = ""
    tail: str = ""
    users_fault: bool = False


@dataclass
class RunResult:
    """How a run ended."""

    run: str
    states: dict[str, State]
    manifests: dict[str, Manifest] = field(default_factory=dict)
    failures: dict[str, Failure] = field(default_factory=dict)
    seconds: float = 0.0
    cancelled: bool = False

    @property
    def ok(self) -> bool:
        """Whether every stage has its result."""
        return not self.cancelled and all(state in GOOD for state in self.states.values())


@dataclass(frozen=True)
class Surroundings:
    """Where and as what a run happens; the same for all its stages."""

    run: str
    directory: Path
    search_path: tuple[str, ...]
    evidence: dict[str, Any]


class Runner:
    """One run of one plan."""

    def __init__(
        self, plan: Plan, store: Store, journal: JournalWriter, around: Surroundings, make_executor: MakeExecutor
    ) -> None:
        self.plan, self.store, self.journal, self.around = plan, store, journal, around
        self.stages = plan.pipeline.stages
        self.make_executor = make_executor
        self.executor: Executor | None = None
        self.result = RunResult(around.run, dict.fromkeys(self.stages, "waiting"))
        self.digests: dict[tuple[str, str], str] = {}
        self.missing = {name: len(spec.upstream) for name, spec in self.stages.items()}
        self.dependents: dict[str, list[str]] = {name: [] for name in self.stages}
        for name, spec in self.stages.items():
            for upstream in spec.upstream:
                self.dependents[upstream].append(name)
        self.ready = deque(name for name, count in self.missing.items() if not count)
        self.running: dict[str, tuple[Step, int]] = {}
        self.pauses: list[tuple[float, Step, int]] = []

    def run(self) -> RunResult:
        """Run to the end, or to Ctrl-C; the result tells which."""
        began = time.monotonic()
        try:
            self._loop()
        except KeyboardInterrupt:
            self._cancel()
        finally:
            if self.executor is not None:
                self.executor.close()
        self.result.seconds = time.monotonic() - began
        return self.result

    def _loop(self) -> None:
        self._start_ready()
        while self.running or self.pauses:
            if self.running:
                assert self.executor is not None
                for finished in self.executor.wait(self._patience()):
                    self._finish(finished)
            else:
                time.sleep(self._patience() or 0)
            self._start_paused()
            self._start_ready()

    def _start_ready(self) -> None:
        while self.ready:
            spec = self.stages[self.ready.popleft()]
            if self.result.states[spec.name] != "waiting":
                continue
            try:
                step = self._step(spec)
            except UserError as error:
                self._fail(spec, Failure(error.message, error.fix, users_fault=True), None, 0, 0.0)
                continue
            if step.manifest is not None:
                self._complete(spec, "cached", step.manifest, step, 0, 0.0)
            else:
                self._start(step, attempt=1)

    def _step(self, spec: StageSpec) -> Step:
        """What to do with a ready stage: as planned, or planned now that its inputs are known."""
        planned = self.plan.steps[spec.name]
        if planned.state != "unknown" and all(self.plan.steps[name].state == "cached" for name in spec.upstream):
            return planned
        return plan_stage(spec, self.plan.pipeline.name, self.digests, self.store)

    def _start(self, step: Step, attempt: int) -> None:
        spec = step.spec
        if self.executor is None:
            self.executor = self.make_executor(self._on_event)
        self.result.states[spec.name] = "running"
        self.running[spec.name] = (step, attempt)
        self.journal.write(
            {"event": "stage-started", "stage": spec.name, "attempt": attempt, "key": step.key, "reasons": step.reasons}
        )
        asked = spec.resources
        request = Request(
            asked.workers, asked.cpus, asked.gpus, asked.memory_bytes, spec.stage.isolated, spec.timeout_seconds
        )
        self.executor.start(spec.name, self._task(step, attempt), request)

    def _task(self, step: Step, attempt: int) -> Task:
        spec = step.spec
        assert step.key is not None
        assert step.identity is not None
        return Task(
            run=self.around.run,
            stage=spec.name,
            uses=spec.uses,
            key=step.key,
            identity=step.identity,
            code=code_of(spec.uses),
            params=spec.params.model_dump(mode="json"),
            inputs={
                name: tuple(
                    InputRef(made.method, made.key, reference.output, reference.stage)
                    for reference in references
                    for made in [self.result.manifests[reference.stage]]
                )
                for name, references in spec.inputs.items()
            },
            seed=spec.seed,
            resources=spec.resources,
            attempt=attempt,
            store=self.store.location,
            log=str(self.log_file(spec)),
            directory=str(self.around.directory),
            search_path=self.around.search_path,
            evidence=self.around.evidence,
        )

    def log_file(self, spec: StageSpec) -> Path:
        """Where the stage's output goes."""
        return self.store.run_directory(self.around.run) / "logs" / f"{spec.slug}.log"

    def _on_event(self, stage: str, event: dict[str, Any]) -> None:
        self.journal.write({**event, "stage": stage})

    def _finish(self, finished: Finished) -> None:
        step, attempt = self.running.pop(finished.name)
        outcome: Outcome | None = finished.result
        if outcome is not None and outcome.manifest is not None:
            manifest = Manifest.from_json(outcome.manifest)
            self._complete(step.spec, "done", manifest, step, attempt, outcome.seconds)
            return
        if outcome is None:
            failure, seconds = Failure(finished.failure or "lost", "see the stage's log"), 0.0
        else:
            failure = Failure(outcome.message, outcome.fix, outcome.tail, outcome.users_fault)
            seconds = outcome.seconds
        if not failure.users_fault and attempt <= step.spec.retries:
            pause = min(2.0 ** (attempt - 1), LONGEST_PAUSE_SECONDS)
            text = f"attempt {attempt} failed: {failure.message}; trying again in {pause:g} s"
            self._on_event(step.spec.name, {"event": "message", "text": text})
            self.pauses.append((time.monotonic() + pause, step, attempt + 1))
            return
        self._fail(step.spec, failure, step, attempt, seconds)

    def _complete(
        self, spec: StageSpec, state: State, manifest: Manifest, step: Step, attempt: int, seconds: float
    ) -> None:
        self.result.manifests[spec.name] = manifest
        learn(self.digests, spec.name, manifest)
        self.store.remember_last(self.plan.pipeline.name, spec.slug, manifest)
        others = {name: made.metrics for name, made in self.result.manifests.items()}
        broken = [problem for gate in spec.expect if (problem := gate.failure(manifest.metrics, others))]
        if broken:
            fix = f"look at the result in {self.store.directory(manifest.method, manifest.key)}, or change `expect`"
            self._fail(spec, Failure("; ".join(broken), fix), step, attempt, seconds)
            return
        self.result.states[spec.name] = state
        self._record(spec, state, step, attempt, seconds)
        for name in self.dependents[spec.name]:
            self.missing[name] -= 1
            if not self.missing[name]:
                self.ready.append(name)

    def _fail(self, spec: StageSpec, failure: Failure, step: Step | None, attempt: int, seconds: float) -> None:
        self.result.states[spec.name] = "failed"
        self.result.failures[spec.name] = failure
        self._record(spec, "failed", step, attempt, seconds, failure)
        for name in self.plan.pipeline.downstream(spec.name):
            if self.result.states[name] == "waiting":
                self.result.states[name] = "skipped"
                self._record(self.stages[name], "skipped", None, 0, 0.0)

    def _record(
        self,
        spec: StageSpec,
        state: State,
        step: Step | None,
        attempt: int,
        seconds: float,
        failure: Failure | None = None,
    ) -> None:
        manifest = self.result.manifests.get(spec.name)
        self.journal.write(
            {
                "event": "stage-finished",
                "stage": spec.name,
                "state": state,
                "attempt": attempt,
                "key": step.key if step else None,
                "producer": manifest.run if manifest else None,
                "reason": "; ".join(step.reasons) if step else "",
                "seconds": round(seconds, 3),
                "metrics": dict(manifest.metrics) if manifest else {},
                "evidence": dict(manifest.evidence) if manifest and state == "done" else {},
                "inputs": self._inputs(spec) if state in GOOD else [],
                "outputs": self._outputs(manifest) if manifest else [],
                "error": {"message": failure.message, "fix": failure.fix, "tail": failure.tail} if failure else None,
            }
        )

    def _inputs(self, spec: StageSpec) -> list[dict[str, Any]]:
        return [
            {
                "name": name,
                "stage": reference.stage,
                "output": reference.output,
                **self._artifact(made, reference.output),
            }
            for name, references in spec.inputs.items()
            for reference in references
            for made in [self.result.manifests[reference.stage]]
        ]

    def _outputs(self, manifest: Manifest) -> list[dict[str, Any]]:
        return [{"name": name, **self._artifact(manifest, name)} for name in manifest.outputs]

    def _artifact(self, manifest: Manifest, output: str) -> dict[str, Any]:
        record = manifest.outputs[output]
        uri = self.store.uri(manifest, output)
        return {
            "kind": record.kind,
            "schema": record.schema,
            "digest": record.digest,
            "uri": uri,
            "bytes": record.size,
        }

    def _start_paused(self) -> None:
        due = [pause for pause in self.pauses if pause[0] <= time.monotonic()]
        self.pauses = [pause for pause in self.pauses if pause not in due]
        for _, step, attempt in due:
            self._start(step, attempt)

    def _patience(self) -> float | None:
        """Seconds until a paused stage is due; None when none is."""
        moments = [moment for moment, _, _ in self.pauses]
        return max(0.0, min(moments) - time.monotonic()) if moments else None

    def _cancel(self) -> None:
        self.result.cancelled = True
        for name, state in self.result.states.items():
            if state in ("waiting", "running"):
                self.result.states[name] = "cancelled"
                self._record(self.stages[name], "cancelled", None, 0, 0.0)
