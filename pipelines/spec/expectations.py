"""A stage's `expect`: its gates, checked against the metrics that stages report."""

from __future__ import annotations

from collections.abc import Iterator
from fnmatch import fnmatchcase
from typing import Any

from pipelines.spec.document import Path
from pipelines.spec.gate import Gate, parse_gate
from pipelines.spec.inputs import Classes, Names
from pipelines.spec.matrix import is_broken
from pipelines.spec.problems import Nearest
from pipelines.spec.reading import Reader
from stages.stage import Stage


def read_gates(
    reader: Reader, stage: type[Stage], path: Path, body: dict[str, Any], arms: Names, classes: Classes
) -> Iterator[Gate]:
    """The gates of a stage; `classes` has that of each stage, by name, and `arms` the names that each of them has."""
    for metric, text in reader.typed(body, path, "expect", dict, {}).items():
        at = (*path, "expect", metric)
        try:
            gate = parse_gate(metric, str(text))
        except ValueError as error:
            reader.tell(at, str(error))
            continue
        _known_metric(reader, at, stage, metric, key=True)
        if gate.of is not None and gate.of[0] not in classes:
            if not is_broken(gate.of[0], arms):
                reader.tell(at, f"unknown stage {gate.of[0]!r} in a gate", Nearest(gate.of[0], classes))
        elif gate.of is not None:
            _known_metric(reader, at, classes[gate.of[0]], gate.of[1])
        yield gate


def _known_metric(reader: Reader, path: Path, stage: type[Stage] | None, metric: str, *, key: bool = False) -> None:
    declared = stage.metrics if stage else ()
    if declared and not any(fnmatchcase(metric, pattern) for pattern in declared):
        reader.tell(path, f"{stage.__name__} reports no metric {metric!r}", Nearest(metric, declared), key=key)
