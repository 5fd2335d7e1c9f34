"""Work as Ray tasks with their own resources; every wait is an event, nothing polls.

Workers send their events to one small actor; the driver waits, in a single `ray.wait`, for the next events and for the
tasks themselves. A task that asks for several workers holds nothing itself: the training launcher below it reserves
them as a group. Call `clusters.environment.prepare` before importing this module: Ray reads its environment then.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray
import ray.exceptions

from clusters.executor import Capacity, Event, Finished, OnEvent, Request, Work, out_of_time
from clusters.profile import Profile

OBJECT_STORE_BYTES = 256 << 20
"""Artifacts travel through the store, never through Ray: its object store carries events and results only."""
PROGRESS_SECONDS = 0.25
ROOT = Path(__file__).resolve().parent.parent


class RayExecutor:
    """Runs work on the Ray cluster of `profile`."""

    def __init__(self, work: Work, on_event: OnEvent, profile: Profile) -> None:
        self.on_event = on_event
        self.owns_cluster = _connect(profile)
        self.channel = ray.remote(num_cpus=0)(_Channel).remote()
        self.shared = ray.remote(max_retries=0)(_run)
        self.isolated = ray.remote(max_retries=0, max_calls=1)(_run)
        self.work = ray.put(work)
        self.running: dict[Any, tuple[str, Request, float]] = {}
        self.events = self.channel.drain.remote()

    def capacity(self) -> Capacity:
        """The largest node's and the whole cluster's resources."""
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        most = {name: max((node.get(name, 0) for node in nodes), default=0) for name in ("CPU", "GPU", "memory")}
        total = {name: sum(node.get(name, 0) for node in nodes) for name in ("CPU", "GPU")}
        return Capacity(most["CPU"], most["GPU"], most["memory"], total["CPU"], total["GPU"])

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
        reference = remote.options(**options).remote(self.work, payload, self.channel, name)
        self.running[reference] = (name, request, time.monotonic())

    def wait(self, timeout_seconds: float | None = None) -> list[Finished]:
        """Block until a task ends or a deadline passes; events are delivered as they come."""
        until = None if timeout_seconds is None else time.monotonic() + timeout_seconds
        while True:
            ready, _ = ray.wait([self.events, *self.running], timeout=self._patience(until))
            self._deliver(self.events in ready)
            finished = [self._finish(reference) for reference in ready if reference in self.running]
            finished += self._overdue()
            if finished or (until is not None and time.monotonic() >= until):
                return finished

    def close(self) -> None:
        """Cancel what runs, by force, and stop the cluster if this executor started it."""
        for reference in self.running:
            with contextlib.suppress(ray.exceptions.RayError):
                ray.cancel(reference, force=True, recursive=True)
        self.running.clear()
        if self.owns_cluster:
            ray.shutdown()
        else:
            ray.kill(self.channel)

    def _patience(self, until: float | None) -> float | None:
        moments = [self._deadline(request, began) for _, request, began in self.running.values()]
        moments = [moment for moment in [*moments, until] if moment is not None]
        return max(0.0, min(moments) - time.monotonic()) if moments else None

    @staticmethod
    def _deadline(request: Request, began: float) -> float | None:
        return None if request.timeout_seconds is None else began + request.timeout_seconds

    def _deliver(self, arrived: bool) -> None:
        if arrived:
            for name, event in ray.get(self.events):
                self.on_event(name, event)
            self.events = self.channel.drain.remote()

    def _finish(self, reference: Any) -> Finished:
        name, _, _ = self.running.pop(reference)
        try:
            result = ray.get(reference)
        except ray.exceptions.OutOfMemoryError:
            return Finished(name, failure="its process was stopped because the machine ran out of memory")
        except ray.exceptions.WorkerCrashedError:
            return Finished(name, failure="its process died (killed, or crashed in native code)")
        except ray.exceptions.RayError as error:
            return Finished(name, failure=f"lost: {str(error).strip().splitlines()[-1]}")
        for event_name, event in ray.get(self.channel.take.remote()):
            self.on_event(event_name, event)
        return Finished(name, result)

    def _overdue(self) -> list[Finished]:
        now, overdue = time.monotonic(), []
        for reference, (name, request, began) in list(self.running.items()):
            deadline = self._deadline(request, began)
            if deadline is not None and now >= deadline:
                ray.cancel(reference, force=True, recursive=True)
                del self.running[reference]
                overdue.append(Finished(name, failure=out_of_time(request.timeout_seconds)))
        return overdue


class _Channel:
    """Carries events from workers to the driver."""

    def __init__(self) -> None:
        self.events: list[tuple[str, Event]] = []
        self.some = asyncio.Event()

    async def push(self, name: str, event: Event) -> None:
        self.events.append((name, event))
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
            ray.get(self.sent)

    def __reduce__(self) -> tuple[Any, ...]:
        return Emitter, (self.channel, self.name)


def _run(work: Work, payload: Any, channel: Any, name: str) -> Any:
    emit = Emitter(channel, name)
    try:
        return work(payload, emit)
    finally:
        emit.flush()


def _connect(profile: Profile) -> bool:
    """Join or start the cluster; returns whether it was started here."""
    if ray.is_initialized():
        return False
    common: dict[str, Any] = {"log_to_driver": False, "logging_level": "error", "namespace": "regraft"}
    if profile.address != "local":
        ray.init(address=profile.address, **common)
        return False
    with _importable_by_workers():
        ray.init(
            address="local",
            num_cpus=profile.cpus,
            num_gpus=profile.gpus,
            include_dashboard=False,
            object_store_memory=OBJECT_STORE_BYTES,
            **common,
        )
    return True


@contextlib.contextmanager
def _importable_by_workers() -> Iterator[None]:
    """Let the processes of a local Ray, which inherit the environment, import what this process can."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys([str(ROOT), *sys.path, *filter(None, [before])]))
    try:
        yield
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before
