"""The sets of rollouts of a run: which policy writes which, and how a resumed run comes by the same.

With `staleness` 0 the policy that is to learn from a set writes it, just before. With 1, set n + 1 is begun with the
weights that the updates from set n begin with, so that a writer in another process has the time of those updates for
it; the first set, which nothing precedes, is written by the policy that learns from it. A set is the same whether it is
written before those updates or beside them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

import torch.distributed
from transformers import PreTrainedModel

from stages.agent.rl.collector import Collector
from stages.agent.rl.experience import Diary, Experience
from stages.training.recipe import Worker


@dataclass(frozen=True)
class Collected:
    """A set, and the seconds that its phases took; none where it was read from the diary."""

    experiences: list[Experience]
    seconds: dict[str, float] = field(default_factory=dict)


class SetWriter(Protocol):
    """Writes one set after another."""

    def start(self, policy: PreTrainedModel, number: int) -> None:
        """Begin the set `number` with the weights that `policy` has now; they may change at once."""
        ...

    def take(self) -> Collected:
        """The set that was begun, as soon as it is whole."""
        ...

    def close(self) -> None:
        """Let go of what is held."""
        ...


class Here:
    """Writes a set in this process when it is begun; with several workers, each writes its share."""

    def __init__(self, collector: Collector) -> None:
        self.collector = collector
        self._found = Collected([])

    def start(self, policy: PreTrainedModel, number: int) -> None:
        """Write the set."""
        found = self.collector.collect(policy, number)
        self._found = Collected(found, dict(self.collector.seconds))

    def take(self) -> Collected:
        """The set that was written."""
        return self._found

    def close(self) -> None:
        """Let go of the tools."""
        self.collector.tools.close()


@dataclass
class Sets:
    """The sets in the order of training: from the diary where they are kept there, else from the writer."""

    writer: SetWriter
    diary: Diary
    num: int
    """Of the whole run."""
    staleness: int
    worker: Worker
    _begun: int | None = None

    def next(self, policy: PreTrainedModel, number: int) -> Collected:
        """The set `number`, which `policy` is about to learn from. Every worker calls it."""
        found = self._kept(number)
        if found is None:
            if self._begun != number:
                self._begin(policy, number)
            found = self._take()
        ahead = number + self.staleness
        if number < ahead < self.num and not self._is_kept(ahead):
            self._begin(policy, ahead)
        return found

    def settle(self) -> None:
        """Keep the set under way, if there is one, in the diary: the weights it was begun with are not kept."""
        if self._begun is not None:
            self._take()

    def _begin(self, policy: PreTrainedModel, number: int) -> None:
        self.writer.start(policy, number)
        self._begun = number

    def _take(self) -> Collected:
        number, self._begun = self._begun, None
        assert number is not None
        found = self.writer.take()
        if self.worker.rank == 0:
            self.diary.write(number, found.experiences)
        return found

    def _kept(self, number: int) -> Collected | None:
        found = self._first_worker_says(self.diary.read(number) if self.worker.rank == 0 else None)
        return None if found is None else Collected(found)

    def _is_kept(self, number: int) -> bool:
        return self._first_worker_says(self.diary.holds(number) if self.worker.rank == 0 else None)

    def _first_worker_says(self, value: Any) -> Any:
        """Worker 0's value, on every worker."""
        if self.worker.world_size == 1:
            return value
        holder = [value]
        torch.distributed.broadcast_object_list(holder)
        return holder[0]
