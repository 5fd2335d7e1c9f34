"""How long stages took before, and so how long a plan will take.

What is known is in the manifests of earlier results of the same method: those of the same stage count first, otherwise
those of any stage. A stage with other parameters may take another time; it is an expectation and no promise.
"""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pipelines.planning.plan import Plan
from pipelines.spec.matrix import stage_base
from pipelines.store import Store

MOST_RESULTS: Final = 40
"""Of one method are read, the newest first."""


@dataclass(frozen=True)
class Expected:
    """What a plan is expected to take."""

    stages: Mapping[str, float]
    """Seconds of each stage that may run and of which something is known."""
    total_seconds: float
    """Along the longest path, as if everything that can run at once did."""
    unknown: tuple[str, ...]
    """Stages that may run and of which nothing is known: they are not in the total."""


def expect(plan: Plan, store: Store) -> Expected:
    """The seconds that the stages of `plan` which may run are expected to take."""
    known: dict[str, dict[str, list[float]]] = {}
    stages: dict[str, float] = {}
    unknown: list[str] = []
    ends: dict[str, float] = {}
    for name, step in plan.steps.items():
        spec = step.spec
        begin = max((ends[upstream] for upstream in spec.upstream), default=0.0)
        if step.state in ("run", "unknown"):
            if spec.uses not in known:
                known[spec.uses] = _seconds_by_stage(store, spec.uses)
            earlier = _fitting(known[spec.uses], name)
            if earlier:
                stages[name] = statistics.median(earlier)
            else:
                unknown.append(name)
        ends[name] = begin + stages.get(name, 0.0)
    return Expected(stages, max(ends.values(), default=0.0), tuple(unknown))


def _fitting(known: Mapping[str, list[float]], stage: str) -> list[float]:
    """Of this stage; else of other arms of its matrix; else of any stage."""
    base = stage_base(stage)
    arms = [second for name, seconds in known.items() if stage_base(name) == base for second in seconds]
    return known.get(stage) or arms or [second for seconds in known.values() for second in seconds]


def _seconds_by_stage(store: Store, method: str) -> dict[str, list[float]]:
    """Seconds that earlier results of `method` took, by the stage that made them. Looks at this machine's copy only."""
    found: dict[str, list[float]] = {}
    for file in _newest(store.directory(method, "")):
        try:
            content = json.loads(file.read_bytes())
            seconds = float(content["evidence"]["seconds"])
        except (OSError, ValueError, KeyError, TypeError):
            continue  # not whole, or without a time: it tells nothing
        found.setdefault(content.get("stage", ""), []).append(seconds)
    return found


def _newest(directory: Path) -> Iterator[Path]:
    try:
        with os.scandir(directory) as entries:
            dated = sorted(((entry.stat().st_mtime, entry.path) for entry in entries if entry.is_dir()), reverse=True)
    except FileNotFoundError:
        return
    yield from (Path(path, "manifest.json") for _, path in dated[:MOST_RESULTS])
