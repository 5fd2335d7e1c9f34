"""Runs a plan: starts what is ready, waits for events, publishes, records.

A stage whose inputs turned out as before is a hit and is not run. A failure stops only what depends on it.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING

from clusters.lost import ClusterLostError
from pipelines.planning.plan import Plan, Step, learn
from pipelines.planning.reasons import Reason
from pipelines.running.attempts import Attempts, MakeExecutor
from pipelines.running.claims import Turn
from pipelines.running.ending_early import cancel, lose, tell_left, wind_down
from pipelines.running.frontier import Frontier
from pipelines.running.journal import JournalWriter
from pipelines.running.record import Ending, Failure, stage_finished
from pipelines.running.result import GOOD, RunResult, State
from pipelines.running.stopping import terminated_like_interrupted
from pipelines.running.task import Outcome, Surroundings
from pipelines.spec.pipeline import StageSpec
from pipelines.store import Manifest, OutputRecord, Store
from pipelines.store.lease import UnreachableError
from stages.errors import UserError

if TYPE_CHECKING:
    from clusters.executor import Finished


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
        self.plan, self.store, self.journal, self.fail_fast = plan, store, journal, fail_fast
        self.stages = plan.pipeline.stages
        left = {name for name in self.stages if plan.steps[name].state == "left"}
        states: dict[str, State] = {name: "left" if name in left else "waiting" for name in self.stages}
        self.result = RunResult(around.run, states)
        self.known: dict[tuple[str, str], OutputRecord] = {}
        self.frontier = Frontier(self.stages, left)
        self.attempts = Attempts(store, journal, around, make_executor, self.result.manifests)
        self.claims = self.attempts.claims

    def run(self) -> RunResult:
        """Run to the end, or to Ctrl-C; the result tells which."""
        began = time.monotonic()
        try:
            with terminated_like_interrupted():
                self._loop_until_stopped()
        except KeyboardInterrupt:
            cancel(self)
        except ClusterLostError as lost:
            lose(self, str(lost))
        finally:
            self.attempts.close()
        if self.result.cancelled:
            tell_left(self)
        self.result.seconds = time.monotonic() - began
        return self.result

    def finish(self, finished: Finished) -> None:
        """An attempt has ended: take its result, try again, or give up."""
        step, attempt = self.attempts.running.pop(finished.name)
        outcome: Outcome | None = finished.result
        if outcome is not None and outcome.manifest is not None:
            self.claims.release(step)
            manifest = Manifest.from_json(outcome.manifest)
            self._complete(step.spec, "done", manifest, step, attempt, outcome.seconds)
        elif outcome is not None and outcome.fenced:
            self._give_way(step, attempt, outcome)
        elif self.ending or not self.attempts.start_in_less(step, attempt, finished):
            failure, seconds = self.attempts.failure_of(step, finished)
            if self.ending or not self.attempts.pause(step, attempt, failure):
                self.claims.release(step)
                self.fail(step.spec, failure, step, attempt, seconds)

    @property
    def ending(self) -> bool:
        """Whether nothing more is to be started, because something failed."""
        return self.fail_fast and bool(self.result.failures)

    def fail(
        self, spec: StageSpec, failure: Failure, step: Step | None = None, attempt: int = 0, seconds: float = 0.0
    ) -> None:
        """Record that the stage failed, and skip what depends on it."""
        self.result.states[spec.name] = "failed"
        self.result.failures[spec.name] = failure
        self.record(spec, "failed", step, attempt, seconds, failure)
        for name in self.plan.pipeline.downstream(spec.name):
            if self.result.states[name] == "waiting":
                self.skip(name)
        if self.fail_fast:
            for paused, _ in self.attempts.take_paused():
                self.claims.release(paused)
                self.skip(paused.spec.name)
            self.claims.wishes.clear()

    def skip(self, name: str) -> None:
        """Record that a stage will not run."""
        self.result.states[name] = "skipped"
        self.record(self.stages[name], "skipped")

    def record(
        self,
        spec: StageSpec,
        state: State,
        step: Step | None = None,
        attempt: int = 0,
        seconds: float = 0.0,
        failure: Failure | None = None,
    ) -> None:
        """Write down how a stage ended."""
        ending = Ending(spec, state, step, attempt, seconds, failure)
        self.journal.write(stage_finished(ending, self.result.manifests, self.store, has_result=state in GOOD))

    def _loop_until_stopped(self) -> None:
        try:
            self._loop()
        except KeyboardInterrupt:
            self.attempts.check_cluster()
            wind_down(self)
            raise

    def _loop(self) -> None:
        self._start_ready()
        while self.attempts.open or self.frontier.ready:
            for finished in self.attempts.wait():
                self.finish(finished)
            self.attempts.start_due()
            self._take_turns(self.claims.look())
            self._start_ready()
        for name in self.result.waiting():  # for nothing starts after a failure
            self.skip(name)

    def _start_ready(self) -> None:
        held: list[str] = []
        while self.frontier.ready and not self.attempts.full:
            spec = self.stages[self.frontier.ready.popleft()]
            if self.result.states[spec.name] == "waiting" and not self._begin(spec):
                held.append(spec.name)
        self.frontier.ready.extend(held)

    def _begin(self, spec: StageSpec) -> bool:
        """Take what is there for a ready stage, or have it started; False where siblings or the store keep it."""
        try:
            step = self._step(spec)
        except UnreachableError as error:
            self.attempts.ask_store_again(spec.name, str(error))
            return self.ending
        except UserError as error:
            self.fail(spec, Failure(error.message, error.fix, users_fault=True))
            return True
        if step.manifest is not None:
            self._complete(spec, "kept" if step.state == "kept" else "cached", step.manifest, step)
        elif self._is_crowded(spec):
            return False
        elif not self.ending:
            self._ask(step, attempt=1)
        return True

    def _is_crowded(self, spec: StageSpec) -> bool:
        """Whether as many arms of its matrix are under way as may be."""
        if spec.max_parallel is None:
            return False
        return sum(other.path == spec.path for other in self.attempts.under_way()) >= spec.max_parallel

    def _step(self, spec: StageSpec) -> Step:
        """What to do with a ready stage: as planned, or planned now that its inputs are known."""
        planned = self.plan.steps[spec.name]
        settled = all(self.plan.steps[name].state not in ("run", "unknown") for name in spec.upstream)
        if planned.state == "kept" or (planned.state != "unknown" and settled):
            return planned
        return self.plan.again(spec, self.known, self.store)

    def _ask(self, step: Step, attempt: int) -> None:
        """Start a stage as soon as no other run computes the same."""
        turn = self.claims.ask(step, attempt)
        self._take_turns([turn] if turn else [])

    def _take_turns(self, turns: list[Turn]) -> None:
        for turn in turns:
            if turn.manifest is not None:
                why = (Reason("made", f"made meanwhile by run {turn.manifest.run}", turn.manifest.run),)
                self._complete(turn.step.spec, "cached", turn.manifest, replace(turn.step, why=why))
            elif turn.lease is not None:
                self.attempts.start(turn.step, turn.attempt, turn.lease)
                self.result.states[turn.step.spec.name] = "running"

    def _give_way(self, step: Step, attempt: int, outcome: Outcome) -> None:
        """Another run took this one for dead and has the key now: wait for its result."""
        self.attempts.say(step.spec.name, outcome.message)
        self.claims.release(step)
        self.attempts.fenced[step.spec.name] += 1
        self.result.states[step.spec.name] = "waiting"
        if not self.ending:
            self._ask(step, attempt + 1)

    def _complete(
        self, spec: StageSpec, state: State, manifest: Manifest, step: Step, attempt: int = 0, seconds: float = 0.0
    ) -> None:
        self.result.manifests[spec.name] = manifest
        learn(self.known, spec.name, manifest)
        if state == "kept":
            self.result.stale[spec.name] = "; ".join(step.reasons)
        else:
            self.store.remember_last(self.plan.pipeline.name, spec.slug, manifest)
        if broken := self._broken_gates(spec, manifest):
            fix = f"look at the result in {self.store.directory(manifest.method, manifest.key)}, or change `expect`"
            self.fail(spec, Failure("; ".join(broken), fix), step, attempt, seconds)
            return
        self.result.states[spec.name] = state
        self.record(spec, state, step, attempt, seconds)
        self.frontier.complete(spec.name)

    def _broken_gates(self, spec: StageSpec, manifest: Manifest) -> list[str]:
        """Why each gate that does not hold does not; what is taken as it is is not judged."""
        gates = spec.expect if spec.name in self.plan.chosen.chosen else ()
        others = {gate.of[0]: self.result.manifests[gate.of[0]].metrics for gate in gates if gate.of}
        return [problem for gate in gates if (problem := gate.failure(manifest.metrics, others))]
