"""Runs a plan: starts what is ready, waits for events, publishes, records.

A stage whose inputs turned out as before is a hit and is not run. A failure stops only what depends on it. The executor
is made when the first stage has to run, so a run whose stages are all cached starts nothing.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Literal

from clusters.executor import ClusterLostError, Executor, Finished, OnEvent, Request
from pipelines.claims import Claims, Turn
from pipelines.identity import code_of
from pipelines.journal import JournalWriter
from pipelines.ladder import step_down
from pipelines.plan import Plan, Step, learn
from pipelines.reasons import Reason
from pipelines.record import Ending, Failure, stage_finished
from pipelines.spec.pipeline import StageSpec
from pipelines.spec.quantities import format_duration
from pipelines.stage_log import log_tail
from pipelines.stopping import grace, terminated_like_interrupted
from pipelines.store import Manifest, Store
from pipelines.store.lease import Lease
from pipelines.worker import InputRef, Outcome, Task
from stages.errors import UserError

State = Literal["waiting", "running", "done", "cached", "kept", "left", "failed", "skipped", "cancelled"]
"""`kept` is stale and taken as it is; `left` was not chosen."""
GOOD: Final = frozenset({"done", "cached", "kept"})
LONGEST_PAUSE_SECONDS: Final = 30.0
MakeExecutor = Callable[[OnEvent], Executor]


@dataclass
class RunResult:
    """How a run ended."""

    run: str
    states: dict[str, State]
    manifests: dict[str, Manifest] = field(default_factory=dict)
    failures: dict[str, Failure] = field(default_factory=dict)
    stale: dict[str, str] = field(default_factory=dict)
    """Why the artifact of a stage that was kept is not today's."""
    seconds: float = 0.0
    cancelled: bool = False
    left: list[str] = field(default_factory=list)
    """Of a cancelled run: what is still there although it should not be."""

    @property
    def ok(self) -> bool:
        """Whether every stage that was chosen has its result."""
        return not self.cancelled and all(state in GOOD or state == "left" for state in self.states.values())


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
        self,
        plan: Plan,
        store: Store,
        journal: JournalWriter,
        around: Surroundings,
        make_executor: MakeExecutor,
        *,
        fail_fast: bool = False,
    ) -> None:
        self.plan, self.store, self.journal, self.around = plan, store, journal, around
        self.stages = plan.pipeline.stages
        self.make_executor = make_executor
        self.fail_fast = fail_fast
        self.executor: Executor | None = None
        states: dict[str, State] = {
            name: "left" if plan.steps[name].state == "left" else "waiting" for name in self.stages
        }
        self.result = RunResult(around.run, states)
        self.digests: dict[tuple[str, str], str] = {}
        self.missing = dict.fromkeys(self.stages, 0)
        self.dependents: dict[str, list[str]] = {name: [] for name in self.stages}
        for name, spec in self.stages.items():
            for upstream in spec.upstream:
                if states[upstream] != "left":
                    self.missing[name] += 1
                    self.dependents[upstream].append(name)
        self.ready = deque(name for name, count in self.missing.items() if not count)
        self.running: dict[str, tuple[Step, int]] = {}
        self.pauses: list[tuple[float, Step, int]] = []
        self.steps_down: dict[str, list[str]] = {}
        """What each stage that ran out of memory gave up for it."""
        self.claims = Claims(store, around.run, self._say)

    def run(self) -> RunResult:
        """Run to the end, or to Ctrl-C; the result tells which."""
        began = time.monotonic()
        try:
            with terminated_like_interrupted():
                self._loop_until_stopped()
        except KeyboardInterrupt:
            self._cancel()
        except ClusterLostError as lost:
            self._lose(str(lost))
        finally:
            if self.executor is not None:
                self.executor.close()
                self.store.clear_work(self.around.run)
            self.claims.close()
        if self.result.cancelled:
            self._check_left()
        self.result.seconds = time.monotonic() - began
        return self.result

    def _loop_until_stopped(self) -> None:
        try:
            self._loop()
        except KeyboardInterrupt:
            self._wind_down()
            raise

    def _loop(self) -> None:
        self._start_ready()
        while self.running or self.pauses or self.claims.wishes:
            if self.running:
                assert self.executor is not None
                for finished in self.executor.wait(self._patience()):
                    self._finish(finished)
            else:
                time.sleep(self._patience() or 0)
            self._start_paused()
            self._take_turns(self.claims.look())
            self._start_ready()
        for name, state in self.result.states.items():
            if state == "waiting":  # for nothing starts after a failure
                self._skip(name)

    def _start_ready(self) -> None:
        held: list[str] = []
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
                state = "kept" if step.state == "kept" else "cached"
                self._complete(spec, state, step.manifest, step, 0, 0.0)
            elif self._crowded(spec):
                held.append(spec.name)
            elif not self._stopped:
                self._ask(step, attempt=1)
        self.ready.extend(held)

    def _crowded(self, spec: StageSpec) -> bool:
        """Whether as many arms of its matrix are under way as may be."""
        if spec.max_parallel is None:
            return False
        waiting = [paused.spec for _, paused, _ in self.pauses] + [wish.step.spec for wish in self.claims.wishes]
        active = [step.spec for step, _ in self.running.values()] + waiting
        return sum(other.path == spec.path for other in active) >= spec.max_parallel

    def _ask(self, step: Step, attempt: int) -> None:
        """Start a stage as soon as no other run computes the same."""
        turn = self.claims.ask(step, attempt)
        self._take_turns([turn] if turn else [])

    def _take_turns(self, turns: list[Turn]) -> None:
        for turn in turns:
            if turn.manifest is not None:
                why = (Reason("made", f"made meanwhile by run {turn.manifest.run}", turn.manifest.run),)
                self._complete(turn.step.spec, "cached", turn.manifest, replace(turn.step, why=why), 0, 0.0)
            elif turn.lease is not None:
                self._start(turn.step, turn.attempt, turn.lease)

    def _step(self, spec: StageSpec) -> Step:
        """What to do with a ready stage: as planned, or planned now that its inputs are known."""
        planned = self.plan.steps[spec.name]
        settled = all(self.plan.steps[name].state not in ("run", "unknown") for name in spec.upstream)
        if planned.state == "kept" or (planned.state != "unknown" and settled):
            return planned
        return self.plan.again(spec, self.digests, self.store)

    @property
    def _stopped(self) -> bool:
        """Whether nothing more is to be started."""
        return self.fail_fast and bool(self.result.failures)

    def _start(self, step: Step, attempt: int, lease: Lease) -> None:
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
        self.executor.start(spec.name, self._task(step, attempt, lease), request)

    def _task(self, step: Step, attempt: int, lease: Lease) -> Task:
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
            log=f"{spec.slug}.log",
            directory=str(self.around.directory),
            search_path=self.around.search_path,
            evidence=self._evidence(spec.name),
            replace=step.forced,
            lease=lease,
        )

    def _evidence(self, stage: str) -> dict[str, Any]:
        steps_down = self.steps_down.get(stage)
        return {**self.around.evidence, "out_of_memory": steps_down} if steps_down else self.around.evidence

    def _say(self, stage: str, text: str) -> None:
        self._on_event(stage, {"event": "message", "text": text})

    def _on_event(self, stage: str, event: dict[str, Any]) -> None:
        self.journal.write({**event, "stage": stage})

    def _finish(self, finished: Finished) -> None:
        step, attempt = self.running.pop(finished.name)
        outcome: Outcome | None = finished.result
        if outcome is not None and outcome.manifest is not None:
            manifest = Manifest.from_json(outcome.manifest)
            self.claims.release(step)
            self._complete(step.spec, "done", manifest, step, attempt, outcome.seconds)
            return
        if outcome is not None and outcome.fenced:
            self._give_way(step, attempt, outcome)
            return
        if (finished.out_of_memory or (outcome and outcome.out_of_memory)) and self._step_down(step, attempt):
            return
        if outcome is None:
            tail = log_tail(self.store.run_directory(self.around.run) / "logs" / f"{step.spec.slug}.log")
            failure, seconds = Failure(finished.failure or "lost", "see the stage's log", tail), 0.0
        else:
            failure = Failure(outcome.message, outcome.fix, outcome.tail, outcome.users_fault)
            seconds = outcome.seconds
        steps_down = len(self.steps_down.get(step.spec.name, ()))
        if not failure.users_fault and attempt - steps_down <= step.spec.retries:
            pause = min(2.0 ** (attempt - 1), LONGEST_PAUSE_SECONDS)
            text = f"attempt {attempt} failed: {failure.message}; trying again in {pause:g} s"
            self._say(step.spec.name, text)
            self.pauses.append((time.monotonic() + pause, step, attempt + 1))
            return
        self.claims.release(step)
        self._fail(step.spec, failure, step, attempt, seconds)

    def _step_down(self, step: Step, attempt: int) -> bool:
        """Start a stage that ran out of memory again, in less; False when there is no less."""
        smaller = step_down(step.spec)
        if smaller is None:
            return False
        spec, change = smaller
        self.steps_down.setdefault(spec.name, []).append(change)
        self._say(spec.name, f"attempt {attempt} ran out of memory; trying again with {change}")
        self._start(replace(step, spec=spec), attempt + 1, self.claims.held(step))
        return True

    def _give_way(self, step: Step, attempt: int, outcome: Outcome) -> None:
        """Another run took this one for dead and has the key now: wait for its result."""
        self._say(step.spec.name, outcome.message)
        self.claims.release(step)
        self.result.states[step.spec.name] = "waiting"
        self._ask(step, attempt + 1)

    def _complete(
        self, spec: StageSpec, state: State, manifest: Manifest, step: Step, attempt: int, seconds: float
    ) -> None:
        self.result.manifests[spec.name] = manifest
        learn(self.digests, spec.name, manifest)
        if state == "kept":
            self.result.stale[spec.name] = "; ".join(step.reasons)
        else:
            self.store.remember_last(self.plan.pipeline.name, spec.slug, manifest)
        if broken := self._broken_gates(spec, manifest):
            fix = f"look at the result in {self.store.directory(manifest.method, manifest.key)}, or change `expect`"
            self._fail(spec, Failure("; ".join(broken), fix), step, attempt, seconds)
            return
        self.result.states[spec.name] = state
        self._record(spec, state, step, attempt, seconds)
        for name in self.dependents[spec.name]:
            self.missing[name] -= 1
            if not self.missing[name]:
                self.ready.append(name)

    def _broken_gates(self, spec: StageSpec, manifest: Manifest) -> list[str]:
        """Why each gate that does not hold does not; what is taken as it is is not judged."""
        gates = spec.expect if spec.name in self.plan.chosen.chosen else ()
        others = {gate.of[0]: self.result.manifests[gate.of[0]].metrics for gate in gates if gate.of}
        return [problem for gate in gates if (problem := gate.failure(manifest.metrics, others))]

    def _fail(self, spec: StageSpec, failure: Failure, step: Step | None, attempt: int, seconds: float) -> None:
        self.result.states[spec.name] = "failed"
        self.result.failures[spec.name] = failure
        self._record(spec, "failed", step, attempt, seconds, failure)
        for name in self.plan.pipeline.downstream(spec.name):
            if self.result.states[name] == "waiting":
                self._skip(name)
        if self.fail_fast:
            for _, paused, _ in self.pauses:
                self._skip(paused.spec.name)
            self.pauses.clear()
            self.claims.wishes.clear()

    def _skip(self, name: str) -> None:
        self.result.states[name] = "skipped"
        self._record(self.stages[name], "skipped")

    def _record(
        self,
        spec: StageSpec,
        state: State,
        step: Step | None = None,
        attempt: int = 0,
        seconds: float = 0.0,
        failure: Failure | None = None,
    ) -> None:
        ending = Ending(spec, state, step, attempt, seconds, failure)
        self.journal.write(stage_finished(ending, self.result.manifests, self.store, has_result=state in GOOD))

    def _start_paused(self) -> None:
        due = [pause for pause in self.pauses if pause[0] <= time.monotonic()]
        self.pauses = [pause for pause in self.pauses if pause not in due]
        for _, step, attempt in due:
            self._start(step, attempt, self.claims.held(step))

    def _patience(self) -> float | None:
        """Seconds until a paused stage is due, or leases are to be looked at; None when nothing of that is."""
        moments = [moment for moment, _, _ in self.pauses] + ([self.claims.due] if self.claims.wishes else [])
        return max(0.0, min(moments) - time.monotonic()) if moments else None

    def _wind_down(self) -> None:
        """Let running stages save what they have and stop. Ctrl-C again, or the end of the grace, cuts it short."""
        self.result.cancelled = True
        end = time.monotonic() + (seconds := grace(self.store.run_directory(self.around.run)))
        if not (self.running and seconds and self.executor and self.executor.ask_to_stop()):
            return
        for name in self.running:
            self._say(name, f"asked to stop within {format_duration(seconds)}; Ctrl-C again stops it now")
        while self.running and (left := end - time.monotonic()) > 0:
            for finished in self.executor.wait(left):
                self._finish_late(finished)

    def _finish_late(self, finished: Finished) -> None:
        """A stage ended while the run was winding down: its result counts, its failure is only told."""
        outcome: Outcome | None = finished.result
        if outcome is not None and outcome.manifest is not None:
            self._finish(finished)
            return
        del self.running[finished.name]
        self._say(finished.name, outcome.message if outcome else finished.failure or "lost")

    def _check_left(self) -> None:
        """Look for what should be gone, and write down what was found."""
        if self.executor is not None:
            self.result.left = self.executor.leftovers()
        self.journal.write({"event": "run-stopped", "left": self.result.left})

    def _lose(self, what: str) -> None:
        """The cluster is gone, or never was: everything on it failed, and nothing more can start."""
        fix = f"start Ray again if it was not started by this run, then `regraft resume {self.around.run}`"
        for step, attempt in list(self.running.values()):
            self._fail(step.spec, Failure(f"{what} while the stage ran", fix), step, attempt, 0.0)
        if self.executor is None:  # the first stage was about to start
            first = next(n for n, state in self.result.states.items() if state == "waiting" and not self.missing[n])
            self._fail(self.stages[first], Failure(what, fix), None, 1, 0.0)
        for name, state in self.result.states.items():
            if state == "waiting":
                self._skip(name)

    def _cancel(self) -> None:
        self.result.cancelled = True
        for name, state in self.result.states.items():
            if state in ("waiting", "running"):
                self.result.states[name] = "cancelled"
                self._record(self.stages[name], "cancelled")
