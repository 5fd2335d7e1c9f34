"""Work as Ray tasks with their own resources; every wait is an event, nothing polls.

Workers send their events to one small actor; the driver waits, in a single `ray.wait`, for the next events and for the
tasks themselves. A task that asks for several workers holds nothing itself: the training launcher below it reserves
them as a group. Call `clusters.environment.prepare` before importing this module: Ray reads its environment then.
"""

from __future__ import annotations

import _thread
import asyncio
import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import ray
import ray.exceptions

from clusters import leftovers
from clusters.executor import Capacity, ClusterLostError, Event, Finished, OnEvent, Request, Work, out_of_time
from clusters.handover import handed_on
from clusters.profile import Profile
from clusters.watch import Watch

OBJECT_STORE_BYTES = 256 << 20
"""Artifacts travel through the store, never through Ray: its object store carries events and results only."""
PROGRESS_SECONDS = 0.25
ASK_SECONDS = 0.25
"""Least time between two questions of one piece of work whether it is to stop."""
JOB_CONFIG_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Set by Ray for the driver of a submitted job, whose environment Ray hands on to all workers."""
ROOT = Path(__file__).resolve().parent.parent


class RayExecutor:
    """Runs work on the Ray cluster of `profile`, for the run called `run`."""

    def __init__(self, work: Work, on_event: OnEvent, profile: Profile, run: str = "") -> None:
        self.on_event, self.run = on_event, run
        with _own_sigterm():
            self.owns_cluster = _connected(profile, run)
        self.lost = ""
        self.left: list[str] = []
        self.watches = [Watch(name, address, self._on_loss) for name, address in _parts().items()]
        self.channel = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(_Channel).remote()
        self.shared = ray.remote(max_retries=0)(_run)
        self.isolated = ray.remote(max_retries=0, max_calls=1)(_run)
        self.work = ray.put(work)
        self.running: dict[Any, tuple[str, Request, float]] = {}
        self.cut_short = False
        """Whether work was killed for its timeout."""
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
        reference = remote.options(**options).remote(self.work, payload, self.channel, name, handed_on())
        self.running[reference] = (name, request, time.monotonic())

    def wait(self, timeout_seconds: float | None = None) -> list[Finished]:
        """Block until a task ends or a deadline passes; events are delivered as they come."""
        until = None if timeout_seconds is None else time.monotonic() + timeout_seconds
        try:
            while True:
                ready, _ = ray.wait([self.events, *self.running], timeout=self._patience(until))
                self._deliver(self.events in ready)
                finished = [self._finish(reference) for reference in ready if reference in self.running]
                finished += self._overdue()
                if finished or (until is not None and time.monotonic() >= until):
                    return finished
        # Either may come first when the head dies: the news from the watch, or a call that Ray gives up.
        except (KeyboardInterrupt, ray.exceptions.RayError):
            if self.lost:
                raise ClusterLostError(self.lost) from None
            raise

    def ask_to_stop(self) -> bool:
        """Ask all work to save what it has and stop."""
        self.channel.stop.remote()
        return True

    def close(self) -> None:
        """Cancel what runs, by force, and stop the cluster if this executor started it."""
        for watch in self.watches:
            watch.close()
        if self.lost:
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

    def _on_loss(self, what: str) -> None:
        """Wake the thread that waits: Ray would let it wait on."""
        self.lost = f"{what} has died"
        _thread.interrupt_main()

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
            told = "its process was stopped because the machine ran out of memory"
            return Finished(name, failure=told, out_of_memory=True)
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
                self.cut_short = True
                del self.running[reference]
                overdue.append(Finished(name, failure=out_of_time(request.timeout_seconds)))
        return overdue


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
            self.asked, self.stop = time.monotonic(), ray.get(self.channel.stopping.remote())
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
            ray.get(self.sent)

    def __reduce__(self) -> tuple[Any, ...]:
        return Emitter, (self.channel, self.name)


def _run(work: Work, payload: Any, channel: Any, name: str, variables: Mapping[str, str]) -> Any:
    os.environ.update(variables)
    emit = Emitter(channel, name)
    try:
        return work(payload, emit)
    finally:
        emit.flush()


def _connected(profile: Profile, run: str) -> bool:
    """As `_connect`. Raises ClusterLostError when there is no Ray to be had."""
    try:
        return _connect(profile, run)
    # Ray has no type for this: what it raises when a part of it does not start in time is a bare Exception.
    except Exception as error:
        done = "started on this machine" if profile.address == "local" else f"joined at {profile.address}"
        if profile.address == "local" and run:
            leftovers.kill_processes(run)
        raise ClusterLostError(f"Ray could not be {done}: {' '.join(str(error).split())}") from error


def _connect(profile: Profile, run: str) -> bool:
    """Join or start the cluster; returns whether it was started here."""
    if ray.is_initialized():
        return False
    common: dict[str, Any] = {"log_to_driver": False, "logging_level": "error", "namespace": "regraft"}
    if profile.address != "local":
        inherited = JOB_CONFIG_VARIABLE in os.environ or not run
        environment = None if inherited else {"env_vars": {leftovers.VARIABLE: run}}
        ray.init(address=profile.address, runtime_env=environment, **common)
        return False
    with _importable_by_workers(), leftovers.marked(run):
        ray.init(
            address="local",
            num_cpus=profile.cpus,
            num_gpus=profile.gpus,
            _memory=profile.memory,
            include_dashboard=False,
            object_store_memory=OBJECT_STORE_BYTES,
            **common,
        )
    return True


def _parts() -> dict[str, str]:
    """The parts of Ray without which this process waits in vain, and where they listen."""
    context = ray.get_runtime_context()
    if ray.util.client.ray.is_connected():
        return {}  # a ray:// address: its own connection ends with an error when the other end is gone
    parts = {"the head of the Ray cluster": context.gcs_address}
    for node in ray.nodes():
        if node["NodeID"] == context.get_node_id():
            parts["Ray's process on this node (raylet)"] = f"{node['NodeManagerAddress']}:{node['NodeManagerPort']}"
    return parts


@contextlib.contextmanager
def _own_sigterm() -> Iterator[None]:
    """Keep this process's answer to SIGTERM: Ray puts one of its own in its place, which exits at once."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, before)


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
