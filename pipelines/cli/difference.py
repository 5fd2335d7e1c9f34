"""How runs differ: parameters and metrics side by side, stages matched by name. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from pipelines.lineage.records import flatten
from pipelines.lineage.view import RunView, StageView
from pipelines.running.result import GOOD

MISSING: Final = object()
"""Stands where a run has no such value; no value of a run equals it."""
RUN: Final = "(run)"
"""The name under which seed, commit and versions are compared."""


@dataclass(frozen=True)
class Row:
    """One parameter or metric; `values` holds one value a run, or `MISSING`."""

    kind: str
    """`parameter`, `metric`, or `state` for how the stage ended."""
    name: str
    values: tuple[Any, ...]

    @property
    def differs(self) -> bool:
        """Whether the runs disagree."""
        return not all(self.agrees(value) for value in self.values[1:])

    def agrees(self, value: Any) -> bool:
        """Whether `value` is the first run's. Cached and done are the same result; NaN is NaN."""
        first = self.values[0]
        if self.kind == "state":
            return first == value or (first in GOOD and value in GOOD)
        both_nan = isinstance(first, float) and isinstance(value, float) and math.isnan(first) and math.isnan(value)
        return both_nan or first == value


@dataclass(frozen=True)
class StageRows:
    """Everything of one stage; `present` says which runs have it."""

    name: str
    present: tuple[bool, ...]
    rows: tuple[Row, ...]

    @property
    def differs(self) -> bool:
        """Whether any row does, or a run lacks the stage."""
        return not all(self.present) or any(row.differs for row in self.rows)


def compare_runs(views: Sequence[RunView]) -> list[StageRows]:
    """What the runs say of themselves, then of each stage, in the order of the first run that has it. Pure."""
    about = [_about(view) for view in views]
    everything = StageRows(RUN, (True,) * len(views), tuple(_rows("parameter", about)))
    names = dict.fromkeys(name for view in views for name in view.stages)
    return [everything, *(_compare_stage(name, [view.stages.get(name) for view in views]) for name in names)]


def comparison_json(runs: Sequence[str], views: Sequence[RunView], stages: Sequence[StageRows]) -> dict[str, Any]:
    """The comparison for machines: every row, with the runs that have a value."""
    return {
        "runs": [
            {"run": run, "pipeline": view.started.get("pipeline", ""), "state": view.state, "seconds": view.seconds}
            for run, view in zip(runs, views, strict=True)
        ],
        "stages": [
            {
                "stage": stage.name,
                "differs": stage.differs,
                "missing_in": [run for run, present in zip(runs, stage.present, strict=True) if not present],
                "rows": [_row_json(runs, row) for row in stage.rows],
            }
            for stage in stages
        ],
    }


def _row_json(runs: Sequence[str], row: Row) -> dict[str, Any]:
    pairs = zip(runs, row.values, strict=True)
    values = {run: value for run, value in pairs if value is not MISSING}
    return {"kind": row.kind, "name": row.name, "differs": row.differs, "values": values}


def _about(view: RunView) -> dict[str, Any]:
    started = view.started
    git = started.get("git") or {}
    found = {"pipeline": started.get("pipeline"), "seed": started.get("seed"), "commit": git.get("commit")}
    return found | {f"version.{name}": version for name, version in (started.get("versions") or {}).items()}


def _compare_stage(name: str, stages: Sequence[StageView | None]) -> StageRows:
    states = tuple(MISSING if stage is None else stage.state for stage in stages)
    rows = [
        Row("state", "state", states),
        *_rows("parameter", [_told(stage) if stage else {} for stage in stages]),
        *_rows("metric", [stage.metrics if stage else {} for stage in stages]),
    ]
    return StageRows(name, tuple(stage is not None for stage in stages), tuple(rows))


def _told(stage: StageView) -> dict[str, Any]:
    """Parameters as they are named; what cannot change the result under a prefix."""
    around = {"execution": stage.execution, "resources": stage.resources}
    leaves = flatten({"method": stage.uses, **stage.params}) | flatten(around)
    return {name: value for name, value in leaves.items() if value != {}}


def _rows(kind: str, columns: Sequence[Mapping[str, Any]]) -> Iterable[Row]:
    for name in dict.fromkeys(name for column in columns for name in column):
        yield Row(kind, name, tuple(column.get(name, MISSING) for column in columns))
