"""The small interface behind which work runs: `start` it, `wait` for what is finished, `close`.

Two implementations: `InlineExecutor` here, in this process, for debugging and tests; `RayExecutor` in
`clusters.ray_executor`. The work is a function `(payload, emit) -> result` of plain picklable values; `emit` may be
called at any time with an event, which reaches `on_event` in the process that waits; `emit.stopping()` tells the work
whether it has been asked to save what it has and stop.
"""

from __future__ import annotations

import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any, NamedTuple, Protocol

Event = dict[str, Any]
OnEvent = Callable[[str, Event], None]


class Emit(Protocol):
    """What work holds of the run it belongs to."""

    def __call__(self, event: Event) -> None:
        """Send an event."""

    def stopping(self) -> bool:
        """Whether the run asks its work to stop at the next good moment."""


Work = Callable[[Any, Emit], Any]


def units(amount: float) -> int:
    """`amount` of a resource in ten-thousandths, in which Ray counts: they divide without rounding."""
    return round(amount * 10_000)


@dataclass(frozen=True)
class Request:
    """What one piece of work asks for, for each of its workers."""

    workers: int = 1
    cpus: float = 1
    gpus: float = 0
    memory_bytes: int = 0
    isolated: bool = False
    """Whether the process that did the work ends with it."""
    timeout_seconds: float | None = None

    def shape(self) -> dict[str, int]:
        """What one worker takes in `units`, by Ray's names; what it takes none of is left out."""
        wanted = {"CPU": self.cpus, "GPU": self.gpus, "memory": self.memory_bytes}
        return {name: units(amount) for name, amount in wanted.items() if units(amount)}


class Share(NamedTuple):
    """A part of one node, or all of it."""

    cpus: float
    gpus: float
    memory_bytes: float

    def num_workers(self, request: Request) -> int:
        """How many workers of `request` it holds; no more than are asked for."""
        there, asked = (map(units, share) for share in (self, (request.cpus, request.gpus, request.memory_bytes)))
        return min([request.workers, *(has // wants for has, wants in zip(there, asked, strict=True) if wants)])


@dataclass(frozen=True)
class Finished:
    """The end of one piece of work: its result, or why there is none."""

    name: str
    result: Any = None
    failure: str | None = None
    """Set when the process or the clock ended the work: it was lost, ran out of memory, or out of time."""
    out_of_memory: bool = False


@dataclass(frozen=True)
class Capacity:
    """The most that one node, and all nodes together, can ever give."""

    node_cpus: float
    node_gpus: float
    node_memory_bytes: float
    total_cpus: float
    total_gpus: float
    nodes: tuple[Share, ...] = ()
    """All of each node, where they are known and there will be no others."""


class Executor(Protocol):
    """Where work runs."""

    def capacity(self) -> Capacity:
        """What can ever be asked for."""

    def start(self, name: str, payload: Any, request: Request) -> None:
        """Begin the work called `name` when there is room for it."""

    def full(self) -> bool:
        """Whether more work would only wait behind what was started."""

    def wait(self, timeout_seconds: float | None = None) -> list[Finished]:
        """Block until some work is finished, delivering events meanwhile; [] when the time is over first."""

    def ask_to_stop(self) -> bool:
        """Ask all work to save what it has and stop; `wait` tells when each has. False when none can be asked."""

    def check(self) -> None:
        """Raise ClusterLostError when what the work runs on is gone: an interrupt may mean that."""

    def close(self) -> None:
        """Stop whatever still runs and free everything."""

    def leftovers(self) -> list[str]:
        """After `close`: what of this run is still there although it should not be, each in a few words."""


class OutOfTime(BaseException):
    """Raised inside inline work when its time is over; no `except Exception` of the work can hold it."""


class InlineExecutor:
    """Runs one piece of work at a time, in this process, when `wait` is called."""

    def __init__(self, work: Work, on_event: OnEvent) -> None:
        self.work = work
        self.on_event = on_event
        self.queue: deque[tuple[str, Any, Request]] = deque()

    def capacity(self) -> Capacity:
        """No limit: work in this process takes what it takes."""
        unlimited = float("inf")
        return Capacity(unlimited, unlimited, unlimited, unlimited, unlimited)

    def start(self, name: str, payload: Any, request: Request) -> None:
        """Queue the work."""
        self.queue.append((name, payload, request))

    def full(self) -> bool:
        """One at a time; what has not begun is left to other runs on the same store."""
        return bool(self.queue)

    def wait(self, timeout_seconds: float | None = None) -> list[Finished]:
        """Do the first queued work to its end."""
        if not self.queue:
            time.sleep(timeout_seconds or 0)
            return []
        name, payload, request = self.queue.popleft()
        try:
            with _alarm(request.timeout_seconds):
                return [Finished(name, self.work(payload, InlineEmit(name, self.on_event)))]
        except OutOfTime:
            return [Finished(name, failure=out_of_time(request.timeout_seconds))]

    def ask_to_stop(self) -> bool:
        """No: what interrupts this process has interrupted the work."""
        return False

    def check(self) -> None:
        """Nothing: there is only this process."""

    def close(self) -> None:
        """Forget what has not begun."""
        self.queue.clear()

    def leftovers(self) -> list[str]:
        """Nothing: there is only this process."""
        return []


class InlineEmit:
    """The `emit` of work in this process."""

    def __init__(self, name: str, on_event: OnEvent) -> None:
        self.name, self.on_event = name, on_event

    def __call__(self, event: Event) -> None:
        """Hand the event on."""
        self.on_event(self.name, event)

    def stopping(self) -> bool:
        """Never: what interrupts this process interrupts the work."""
        return False


def out_of_time(seconds: float | None) -> str:
    """The failure of work that used up its time."""
    return f"stopped after its timeout of {seconds:g} s"


@contextmanager
def _alarm(seconds: float | None) -> Iterator[None]:
    if seconds is None or threading.current_thread() is not threading.main_thread():
        yield
        return

    def ring(_signum: int, _frame: FrameType | None) -> None:
        raise OutOfTime

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
