"""Work that waits for room in a cluster: whether it does, and what is told about it, once and at growing intervals.

Nothing here talks to Ray: what the cluster has is looked at through a function, and only when it is time to.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from clusters.executor import OnEvent, Request, Share
from stages.errors import listing

FIRST_SECONDS: Final = 5.0
"""After which work that has not begun is looked at for the first time."""
GROWTH: Final = 4.0
"""Each pause between two looks is so many times the one before."""
LONGEST_SECONDS: Final = 1800.0
PATIENCE_SECONDS: Final = 600.0
"""How long work waits that no node which is up could ever hold: a node may come back."""


@dataclass(frozen=True)
class Situation:
    """What a cluster has now, node by node, and what waits for it."""

    nodes: Sequence[Share]
    free: Sequence[Share]
    tasks: Sequence[Mapping[str, int]] = ()
    """What each kind of task that waits asks for, as `Request.shape`; of any run."""
    groups: Sequence[int] = ()
    """How many workers each group of this run that waits has."""

    def waits(self, request: Request) -> bool:
        """Whether work that asks for `request`, and has not begun, does not begin for want of room."""
        return request.workers in self.groups if request.workers > 1 else request.shape() in self.tasks

    def is_hopeless(self, request: Request) -> bool:
        """Whether the nodes that are up could not hold it if they were empty."""
        return sum(node.num_workers(request) for node in self.nodes) < request.workers

    def told(self, request: Request) -> str:
        """What is asked for, what is free, and what there is."""
        free = f"{_of('cpu', self)}{_of('gpu', self) if request.gpus else ''}"
        memory = f", {_gib(max((s.memory_bytes for s in self.free), default=0))} GiB" if request.memory_bytes else ""
        most = max(self.free, key=lambda share: (share.num_workers(request), share.cpus), default=Share(0, 0, 0))
        gpus = f", {most.gpus:g} gpus" if request.gpus else ""
        nodes = f"{len(self.nodes)} node{'s' if len(self.nodes) != 1 else ''}"
        return (
            f"asks for {asked(request)}; free now: {free} on {nodes}, at most {most.cpus:g} cpus{gpus}{memory} on one"
        )


@dataclass
class _Wait:
    request: Request
    began: float
    """By the monotonic clock."""
    since: str
    due: float
    pause: float
    told: bool = False
    queues: bool = False
    """Whether other work of the same run was at work when it was last told, which a person expects."""
    hopeless_since: float | None = None


@dataclass
class Waits:
    """The work of one run that has not begun, or is not known to have."""

    look: Callable[[], Situation]
    tell: OnEvent
    may_grow: bool = False
    """Whether the cluster may get other nodes than it has, so that nothing is hopeless."""
    waiting: dict[str, _Wait] = field(default_factory=dict)
    at_work: set[str] = field(default_factory=set)
    """What has its room and has not ended; without groups, of which nothing says when they have theirs."""

    def started(self, name: str, request: Request) -> None:
        """Work was handed to the cluster."""
        now = time.monotonic()
        self.waiting[name] = _Wait(request, now, time.strftime("%H:%M:%S"), now + FIRST_SECONDS, FIRST_SECONDS)

    def heard_of(self, name: str, *, began: bool) -> None:
        """Work has said something: that it `began`, or anything else, which a group that waits cannot."""
        wait = self.waiting.get(name)
        if wait is not None and (wait.told or (began and wait.request.workers == 1)):
            self._placed(name, wait)

    def ended(self, name: str) -> None:
        """Work is over."""
        self.waiting.pop(name, None)
        self.at_work.discard(name)

    def due(self) -> float | None:
        """When to look again, by the monotonic clock."""
        return min((wait.due for wait in self.waiting.values()), default=None)

    def check(self) -> dict[str, str]:
        """Tell what is to be told now; returns why work can be given up, by its name."""
        now = time.monotonic()
        late = {name: wait for name, wait in self.waiting.items() if wait.due <= now}
        if not late:
            return {}
        situation, given_up = self.look(), {}
        for name, wait in late.items():
            wait.pause = min(wait.pause * GROWTH, LONGEST_SECONDS)
            wait.due = now + wait.pause
            if situation.waits(wait.request):
                if self._is_given_up(wait, situation, now):
                    given_up[name] = f"{situation.told(wait.request)}; no node that is up could ever hold it"
                else:
                    self._tell(name, wait, situation, now)
            elif wait.told:
                self._placed(name, wait)
        return given_up

    def _tell(self, name: str, wait: _Wait, situation: Situation, now: float) -> None:
        wait.told, wait.queues = True, bool(self.at_work) and wait.hopeless_since is None
        behind = f", behind {listing(sorted(self.at_work), limit=2)}" if wait.queues else ""
        text = f"waits for room since {wait.since}{behind}: {situation.told(wait.request)}"
        if wait.hopeless_since is not None:
            left = PATIENCE_SECONDS - (now - wait.hopeless_since)
            text += f"; no node that is up could ever hold it, and it fails in {left:.0f} s unless one comes"
            wait.due = min(wait.due, wait.hopeless_since + PATIENCE_SECONDS)
        self._say(name, wait, "waits-for-room", text, now)

    def _is_given_up(self, wait: _Wait, situation: Situation, now: float) -> bool:
        if self.may_grow or not situation.is_hopeless(wait.request):
            wait.hopeless_since = None
            return False
        wait.hopeless_since = now if wait.hopeless_since is None else wait.hopeless_since
        return now - wait.hopeless_since >= PATIENCE_SECONDS

    def _placed(self, name: str, wait: _Wait) -> None:
        if wait.told:
            now = time.monotonic()
            self._say(name, wait, "has-room", f"has room after {now - wait.began:.0f} s", now)
        wait.told = False
        if wait.request.workers == 1:
            del self.waiting[name]
            self.at_work.add(name)

    def _say(self, name: str, wait: _Wait, event: str, text: str, now: float) -> None:
        seconds = round(now - wait.began, 1)
        self.tell(name, {"event": event, "text": text, "seconds": seconds, "queues": wait.queues})


def asked(request: Request) -> str:
    """What a request asks for, in words: `2 × (3 cpus, 1 gpu)`."""
    parts = [_count(request.cpus, "cpu")] if request.cpus or not request.gpus else []
    parts += [_count(request.gpus, "gpu")] if request.gpus else []
    parts += [f"{_gib(request.memory_bytes)} GiB"] if request.memory_bytes else []
    return f"{request.workers} × ({', '.join(parts)})" if request.workers > 1 else ", ".join(parts)


def _of(what: str, situation: Situation) -> str:
    free, total = (sum(getattr(share, f"{what}s") for share in side) for side in (situation.free, situation.nodes))
    return f"{free:g} of {total:g} {what}s" if what == "cpu" else f", {free:g} of {total:g} {what}s"


def _count(amount: float, what: str) -> str:
    return f"{amount:g} {what}{'' if amount == 1 else 's'}"


def _gib(num_bytes: float) -> str:
    return f"{num_bytes / 2**30:.3g}"
