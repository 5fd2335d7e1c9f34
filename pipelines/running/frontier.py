"""The front of a run in its DAG: which stages have everything they wait for."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Mapping

from pipelines.spec.pipeline import StageSpec


class Frontier:
    """Stages that may start, in order; those of `left` are waited for by nobody."""

    def __init__(self, stages: Mapping[str, StageSpec], left: Collection[str]) -> None:
        self.missing = dict.fromkeys(stages, 0)
        """How many stages above each have no result yet."""
        self.dependents: dict[str, list[str]] = {name: [] for name in stages}
        for name, spec in stages.items():
            for upstream in spec.upstream:
                if upstream not in left:
                    self.missing[name] += 1
                    self.dependents[upstream].append(name)
        self.ready = deque(name for name, count in self.missing.items() if not count)

    def complete(self, name: str) -> None:
        """The stage has its result: what waited for nothing else is ready."""
        for dependent in self.dependents[name]:
            self.missing[dependent] -= 1
            if not self.missing[dependent]:
                self.ready.append(dependent)
