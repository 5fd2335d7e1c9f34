"""Work as Ray tasks with their own resources; every wait is an event, nothing polls.

Workers send their events to one small actor; the driver waits, in a single `ray.wait`, for the next events and for the
tasks themselves. A task that asks for several workers holds nothing itself: the training launcher below it reserves
them as a group. Call `clusters.environment.prepare` before importing this module: Ray reads its environment then.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Mapping
from typing import Any

import ray
import ray.exceptions

from clusters import leftovers
from clusters.connection import connected, own_sigterm, parts
from clusters.executor import Capacity, Event, Finished, OnEvent, Request, Work, out_of_time
from clusters.handover import handed_on
from clusters.lost import Loss
from clusters.profile import Profile
from clusters.room import Situation, Waits
from clusters.situation import capacity, situation
from clusters.watch import Watch
from stages.holding import answer

PROGRESS_SECONDS = 0.25
BEGAN = "began"
"""The first event of all work; it goes no further than the executor."""
NEWS_SECONDS = 0.5
"""How much later than the end of a process the news may come that its whole cluster has died."""
ASK_SECONDS = 0.25
"""Least time between two questions of one piece of work whether it is to stop."""


class RayExecutor:
    """Runs work on the Ray cluster of `profile`, for the run called `run`."""

    def __init__(self, work: Work, on_event: OnEvent, profile: Profile, run: str = "") -> None:
        self.on_event, self.run = on_event, run
        with own_sigterm():
            self.owns_cluster = connected(profile, run)
        self.loss = Loss()
        self.left: list[str] = []
        self.watches = [Watch(name, address, self.loss.tell) for name, address in parts().items()]
        self.channel = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(_Channel).remote()
        self.shared = ray.remote(max_retries=0)(_run)
        self.isolated = ray.remote(max_retries=0, max_calls=1)(_run)
        self.work = ray.put(work)
        self.running: dict[Any, tuple[str, Request, float | None]] = {}
        """Name, request, and since when its time counts: of several workers from the start, else once it has begun."""
        self.waits = Waits(_looked_at, on_event, may_grow=profile.widest(capacity()).nodes == ())
        self.cut_short = False
        """Whether work was killed for its timeout."""
        self.events = self.channel.drain.remote()

    def capacity(self) -> Capacity:
        """The largest node's and the whole cluster's resources."""
        return capacity()

    def start(self, name: str, payload: Any, request: Request) -> None:
        """Hand the work to Ray, which begins it when its resources are free."""
        alone = request.workers == 1
        options = {
            "num_cpus": request.cpus if alone else 0,
            "num_gpus": request.gpus if alone else 0,
            "memory": request.memory_bytes or None if alone else None,
            "name": name,
        }
        remote = self.isolated if request.isolated else self.shared
        reference = remote.options(**options).remote(self.work, payload, self.channel, name, handed_on())
        self.running[reference] = (name, request, None if alone else time.monotonic())
        self.waits.started(name, request)

    def wait(self, timeout_seconds: float | None = None) -> list[Finished]:
        """Block until a task ends or a deadline passes; events are delivered as they come."""
        self.check()
        until = None if timeout_seconds is None else time.monotonic() + timeout_seconds
        try:
            while True:
                ready, _ = ray.wait([self.events, *self.running], timeout=self._patience(until))
                self._deliver(self.events in ready)
                finished = [self._finish(reference) for reference in ready if reference in self.running]
                finished += self._overdue() + self._given_up()
                if finished or (until is not None and time.monotonic() >= until):
                    return finished
        except KeyboardInterrupt:
            self.check()
            raise
        # Either may come first when the head dies: the news from the watch, or what Ray gives up.
        except ray.exceptions.RayError:
            self.loss.check(NEWS_SECONDS)
            raise

    def full(self) -> bool:
        """Never: Ray starts what there is room for, and `clusters.room` tells what waits."""
        return False

    def ask_to_stop(self) -> bool:
        """Ask all work to save what it has and stop."""
        self.check()
        self.channel.stop.remote()
        return True

    def check(self) -> None:
        """Raise ClusterLostError when the head of the cluster has died."""
        self.loss.check()

    def close(self) -> None:
        """Cancel what runs, by force, and stop the cluster if this executor started it."""
        for watch in self.watches:
            watch.close()
        if self.loss.what:
            self.left = leftovers.end_processes(self.run, patience_seconds=0) if self.owns_cluster else []
            return
        self._kill()
        if self.owns_cluster:
            ray.shutdown()
            if self.cut_short:
                leftovers.kill_processes(self.run)  # what a child of the stage started while the stage was killed

    def leftovers(self) -> list[str]:
        """Actors and placement groups of this run in Ray's tables, and its processes on this machine."""
        return self.left + (leftovers.end_processes(self.run) if self.owns_cluster and self.run else [])

    def _kill(self) -> None:
        killed = bool(self.running)
        for reference in self.running:
            with contextlib.suppress(ray.exceptions.RayError):
                ray.cancel(reference, force=True, recursive=True)
        self.running.clear()
        ray.cancel(self.events)  # it would be tried again, and the user be told so
        ray.kill(self.channel)
        if killed:
            self.left = leftovers.end_in_cluster(ray.get_runtime_context().get_job_id())

    def _patience(self, until: float | None) -> float | None:
        moments = [self._deadline(request, began) for _, request, began in self.running.values()]
        moments = [moment for moment in [*moments, self.waits.due(), until] if moment is not None]
        return max(0.0, min(moments) - time.monotonic()) if moments else None

    @staticmethod
    def _deadline(request: Request, began: float | None) -> float | None:
        return None if request.timeout_seconds is None or began is None else began + request.timeout_seconds

    def _deliver(self, arrived: bool) -> None:
        if arrived:
            self._hear_all(self.events)
            self.events = self.channel.drain.remote()

    def _deliver_rest(self) -> None:
        """Deliver all that was ever sent: the drain that is under way may have taken some of it already."""
        self.channel.wake.remote()
        self._hear_all(self.events)
        self._hear_all(self.channel.take.remote())
        self.events = self.channel.drain.remote()

    def _hear_all(self, events: Any) -> None:
        for name, event in ray.get(events):
            self._hear(name, event)

    def _hear(self, name: str, event: Event) -> None:
        began = event["event"] == BEGAN
        self.waits.heard_of(name, began=began)
        if began:
            self._count_from_now(name)
        else:
            self.on_event(name, event)

    def _count_from_now(self, name: str) -> None:
        for reference, (running, request, began) in self.running.items():
            if running == name and began is None:
                self.running[reference] = (name, request, time.monotonic())

    def _finish(self, reference: Any) -> Finished:
        name, _, _ = self.running.pop(reference)
        self._deliver_rest()
        self.waits.ended(name)
        try:
            return Finished(name, ray.get(reference))
        except ray.exceptions.OutOfMemoryError:
            told = "its process was stopped because the machine ran out of memory"
            return Finished(name, failure=told, out_of_memory=True)
        except ray.exceptions.WorkerCrashedError:
            self.loss.check(NEWS_SECONDS)
            return Finished(name, failure="its process died (killed, or crashed in native code)")
        except ray.exceptions.RayError as error:
            self.loss.check(NEWS_SECONDS)
            return Finished(name, failure=f"lost: {str(error).strip().splitlines()[-1]}")

    def _overdue(self) -> list[Finished]:
        now = time.monotonic()
        late = {
            name: out_of_time(request.timeout_seconds)
            for name, request, began in self.running.values()
            if (deadline := self._deadline(request, began)) is not None and now >= deadline
        }
        return self._stop(late)

    def _given_up(self) -> list[Finished]:
        return self._stop(self.waits.check())

    def _stop(self, why: Mapping[str, str]) -> list[Finished]:
        """End work by force, for the reason given for each name."""
        for reference, (name, _, _) in list(self.running.items()):
            if name in why:
                ray.cancel(reference, force=True, recursive=True)
                self.cut_short = True
                del self.running[reference]
                self.waits.ended(name)
        return [Finished(name, failure=reason) for name, reason in why.items()]


def _looked_at() -> Situation:
    """What the cluster has, once it has back what dead attempts of this run held."""
    if not ray.util.client.ray.is_connected():
        leftovers.free_groups_of_the_dead(ray.get_runtime_context().get_job_id())
    return situation()


class _Channel:
    """Carries events from workers to the driver."""

    def __init__(self) -> None:
        self.events: list[tuple[str, Event]] = []
        self.some = asyncio.Event()
        self.stopped = False

    async def stop(self) -> None:
        self.stopped = True

    async def stopping(self) -> bool:
        return self.stopped

    async def push(self, name: str, event: Event) -> None:
        self.events.append((name, event))
        self.some.set()

    async def wake(self) -> None:
        """End the drain that waits, with what there is."""
        self.some.set()

    async def drain(self) -> list[tuple[str, Event]]:
        """Everything that came, waiting for the first."""
        await self.some.wait()
        return await self.take()

    async def take(self) -> list[tuple[str, Event]]:
        """Everything that came, at once."""
        taken, self.events = self.events, []
        self.some.clear()
        return taken


class Emitter:
    """The `emit` of one piece of work; picklable, so that the workers of a training job can hold it too."""

    def __init__(self, channel: Any, name: str) -> None:
        self.channel, self.name = channel, name
        self.last_progress = 0.0
        self.sent: Any = None
        self.asked, self.stop = 0.0, False

    def stopping(self) -> bool:
        """Whether the run asks its work to stop at the next good moment."""
        if not self.stop and time.monotonic() - self.asked >= ASK_SECONDS:
            self.asked, self.stop = time.monotonic(), answer(self.channel.stopping.remote())
        return self.stop

    def __call__(self, event: Event) -> None:
        """Send the event; progress is thinned out, except its end."""
        if event.get("event") == "progress" and event.get("done") != event.get("total"):
            if time.monotonic() - self.last_progress < PROGRESS_SECONDS:
                return
            self.last_progress = time.monotonic()
        self.sent = self.channel.push.remote(self.name, event)

    def flush(self) -> None:
        """Wait until the last event has arrived."""
        if self.sent is not None:
            answer(self.sent)

    def __reduce__(self) -> tuple[Any, ...]:
        return Emitter, (self.channel, self.name)


def _run(work: Work, payload: Any, channel: Any, name: str, variables: Mapping[str, str]) -> Any:
    os.environ.update(variables)
    emit = Emitter(channel, name)
    emit({"event": BEGAN})
    try:
        return work(payload, emit)
    finally:
        emit.flush()
