"""The attempts of a run at its stages: starts them, and tries again what failed, or in less what ran out of memory.

The executor is made for the first of them, so a run whose stages are all cached starts nothing.
"""

from __future__ import annotations

import shlex
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from pipelines.planning.identity import code_of, grafts_in
from pipelines.planning.plan import Step
from pipelines.running.claims import LOOK_SECONDS, Claims
from pipelines.running.journal import JournalWriter
from pipelines.running.ladder import step_down
from pipelines.running.record import Failure
from pipelines.running.stage_log import log_tail
from pipelines.running.task import Outcome, Surroundings, Task, make_task
from pipelines.spec.pipeline import StageSpec
from pipelines.store import Manifest, Store
from pipelines.store.lease import Lease

if TYPE_CHECKING:
    from clusters.executor import Executor, Finished, OnEvent, Request

LONGEST_PAUSE_SECONDS: Final = 30.0
MakeExecutor = Callable[["OnEvent"], "Executor"]


class Attempts:
    """What is under way in one run; `made` has the results of its stages so far."""

    def __init__(
        self,
        store: Store,
        journal: JournalWriter,
        around: Surroundings,
        make_executor: MakeExecutor,
        made: Mapping[str, Manifest],
    ) -> None:
        self.store, self.journal, self.around, self.made = store, journal, around, made
        self.make_executor = make_executor
        self.executor: Executor | None = None
        self.claims = Claims(store, around.run, self.say)
        self.running: dict[str, tuple[Step, int]] = {}
        self.pauses: list[tuple[float, Step, int]] = []
        """Attempts that wait after a failure, and until when by the monotonic clock."""
        self.steps_down: dict[str, list[str]] = {}
        """What each stage that ran out of memory gave up for it."""

        self.fenced: Counter[str] = Counter()
        """Attempts of each stage that another run took for dead: they did not fail."""
        self.ask_at: float | None = None
        """When to ask a store again that could not be reached, by the monotonic clock."""
        self.store_away: dict[str, str] = {}
        """What was last told of a store that could not be asked, by the stage that waits for its answer."""

    def start(self, step: Step, attempt: int, lease: Lease) -> None:
        """Hand the attempt to the executor."""
        if self.executor is None:
            self.executor = self.make_executor(self.on_event)
        spec = step.spec
        self.running[spec.name] = (step, attempt)
        about = {"stage": spec.name, "attempt": attempt, "key": step.key, "reasons": step.reasons}
        self.journal.write({"event": "stage-started", **about})
        self.executor.start(spec.name, self._task(step, attempt, lease), _request(spec))

    def start_due(self) -> None:
        """Start what has paused for long enough."""
        due = [pause for pause in self.pauses if pause[0] <= time.monotonic()]
        self.pauses = [pause for pause in self.pauses if pause not in due]
        for _, step, attempt in due:
            self.start(step, attempt, self.claims.held(step))

    def wait(self) -> list[Finished]:
        """Block until an attempt has ended, or something is to be done: a pause is over, a lease to be looked at."""
        patience, self.ask_at = self._patience(), None
        if not self.running:
            time.sleep(patience or 0)
            return []
        assert self.executor is not None
        return self.executor.wait(patience)

    def ask_store_again(self, stage: str, problem: str) -> None:
        """Come back to a stage soon: the store could not be reached when it got its turn."""
        self.ask_at = time.monotonic() + LOOK_SECONDS
        if self.store_away.get(stage) != problem:
            self.store_away[stage] = problem
            self.say(stage, problem)

    def take_paused(self) -> list[tuple[Step, int]]:
        """The attempts that wait after a failure; they will not be made."""
        taken, self.pauses = self.pauses, []
        return [(step, attempt) for _, step, attempt in taken]

    def check_cluster(self) -> None:
        """Raise ClusterLostError when what the attempts run on is gone."""
        if self.executor is not None:
            self.executor.check()

    def under_way(self) -> list[StageSpec]:
        """Stages that run, pause, or wait for their lease."""
        waiting = [paused.spec for _, paused, _ in self.pauses] + [wish.step.spec for wish in self.claims.wishes]
        return [step.spec for step, _ in self.running.values()] + waiting

    @property
    def full(self) -> bool:
        """Whether what is started now would only wait behind what runs."""
        return self.executor is not None and self.executor.full()

    @property
    def open(self) -> bool:
        """Whether anything is under way."""
        return bool(self.running or self.pauses or self.claims.wishes)

    def start_in_less(self, step: Step, attempt: int, finished: Finished) -> bool:
        """Start a stage again that ran out of memory, in less; False when that is not it, or there is no less."""
        outcome: Outcome | None = finished.result
        out_of_memory = finished.out_of_memory or (outcome is not None and outcome.out_of_memory)
        smaller = step_down(step.spec) if out_of_memory else None
        if smaller is None:
            return False
        spec, change = smaller
        self.steps_down.setdefault(spec.name, []).append(change)
        self.say(spec.name, f"attempt {attempt} ran out of memory; trying again with {change}")
        self.start(replace(step, spec=spec), attempt + 1, self.claims.held(step))
        return True

    def pause(self, step: Step, attempt: int, failure: Failure) -> bool:
        """Have a failed stage tried again after a while; False when that is no use, or was done often enough."""
        spent = attempt - len(self.steps_down.get(step.spec.name, ())) - self.fenced[step.spec.name]
        if failure.users_fault or spent > step.spec.retries:
            return False
        seconds = min(2.0 ** (attempt - 1), LONGEST_PAUSE_SECONDS)
        self.say(step.spec.name, f"attempt {attempt} failed: {failure.message}; trying again in {seconds:g} s")
        self.pauses.append((time.monotonic() + seconds, step, attempt + 1))
        return True

    def failure_of(self, step: Step, finished: Finished) -> tuple[Failure, float]:
        """Why the attempt failed, and how many seconds it took."""
        outcome: Outcome | None = finished.result
        if outcome is not None:
            return Failure(outcome.message, outcome.fix, outcome.tail, outcome.users_fault), outcome.seconds
        tail = log_tail(self.store.run_directory(self.around.run) / "logs" / f"{step.spec.slug}.log")
        fix = f"see its log: {self.store.command(f'logs {self.around.run} {shlex.quote(step.spec.name)}')}"
        return Failure(finished.failure or "lost", fix, tail), 0.0

    def close(self) -> None:
        """Stop whatever runs, and give all leases back."""
        if self.executor is not None:
            self.executor.close()
            self.store.clear_work(self.around.run)
        self.claims.close()

    def say(self, stage: str, text: str) -> None:
        """Tell people something about a stage."""
        self.on_event(stage, {"event": "message", "text": text})

    def on_event(self, stage: str, event: dict[str, Any]) -> None:
        """Take in what a stage tells of itself."""
        self.journal.write({**event, "stage": stage})

    def _task(self, step: Step, attempt: int, lease: Lease) -> Task:
        steps_down = self.steps_down.get(step.spec.name)
        evidence = {**self.around.evidence, "out_of_memory": steps_down} if steps_down else self.around.evidence
        around, code = replace(self.around, evidence=evidence), code_of(step.spec.uses, grafts_in(step.identity or {}))
        store = self.store.location
        return make_task(step, attempt, lease=lease, code=code, around=around, store=store, made=self.made)

    def _patience(self) -> float | None:
        """Seconds until a paused stage is due, leases or the store are to be looked at; None when nothing of it is."""
        moments = [moment for moment, _, _ in self.pauses] + ([self.claims.due] if self.claims.wishes else [])
        moments += [] if self.ask_at is None else [self.ask_at]
        return max(0.0, min(moments) - time.monotonic()) if moments else None


def _request(spec: StageSpec) -> Request:
    from clusters.executor import Request

    asked = spec.resources
    return Request(
        workers=asked.workers,
        cpus=asked.cpus,
        gpus=asked.gpus,
        memory_bytes=asked.memory_bytes,
        isolated=spec.stage.isolated,
        timeout_seconds=spec.timeout_seconds,
    )
