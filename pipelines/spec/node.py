"""One node of the DAG: from the body of a stage, or of an arm of its matrix, to a `StageSpec`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from pipelines.spec.document import Path
from pipelines.spec.expectations import read_gates
from pipelines.spec.inputs import read_inputs
from pipelines.spec.matrix import Arm, is_broken, stage_slug
from pipelines.spec.parameters import read_parameters
from pipelines.spec.pipeline import StageSpec
from pipelines.spec.problems import Nearest
from pipelines.spec.quantities import parse_bytes, parse_duration
from pipelines.spec.reading import Reader, kind_of
from stages.stage import Resources, Stage

RESOURCE_KEYS: Final = ("workers", "cpus", "gpus", "memory")


@dataclass(frozen=True)
class Neighbours:
    """The stages that a stage can refer to."""

    arms: Mapping[str, list[str]]
    """The names of the arms of each stage of the file, by its name there."""
    classes: Mapping[str, type[Stage] | None]
    """The class of each arm, by its name; None where it is not known."""


def read_node(reader: Reader, stage: type[Stage], arm: Arm, others: Neighbours, seed: int) -> StageSpec:
    """The typed stage; `seed` is that of the pipeline. Problems are noted."""
    name, path, body = arm
    timeout = body.get("timeout")
    return StageSpec(
        name=name,
        slug=stage_slug(name),
        uses=body["uses"],
        stage=stage,
        params=read_parameters(reader, stage, path, body),
        inputs=read_inputs(stage, path, body.get("inputs"), others.arms, others.classes, reader.tell, reader.grow),
        needs=tuple(_needs(reader, (*path, "needs"), body.get("needs") or [], others)),
        resources=_resources(reader, stage, path, body),
        retries=reader.typed(body, path, "retries", int, 0, at_least=0),
        timeout_seconds=None if timeout is None else reader.quantity((*path, "timeout"), timeout, parse_duration),
        max_parallel=reader.typed(body, path, "max_parallel", int, None, at_least=1),
        expect=tuple(read_gates(reader, stage, path, body, others.arms, others.classes)),
        seed=reader.typed(body, path, "seed", int, seed),
        path=path,
        place=f"{reader.document.file}:{reader.document.place(path, key=True).line}",
    )


def _needs(reader: Reader, path: Path, value: Any, others: Neighbours) -> Iterator[str]:
    wanted = [value] if isinstance(value, str) else value
    if not isinstance(wanted, list):
        reader.tell(path, f"`needs` is a stage or a list of stages, found {kind_of(value)}")
        return
    for index, item in enumerate(wanted):
        if not isinstance(item, str):
            reader.tell(path, f"`needs` is a stage or a list of stages, found {kind_of(item)} in it")
        elif item in others.arms:
            reader.grow(path, others.arms[item])
            yield from others.arms[item]
        elif item in others.classes:
            yield item
        elif not is_broken(item, others.arms):
            at = path if isinstance(value, str) else (*path, index)
            reader.tell(at, f"unknown stage {item!r} in needs", Nearest(str(item), others.arms))


def _resources(reader: Reader, stage: type[Stage], path: Path, body: dict[str, Any]) -> Resources:
    path = (*path, "resources")
    raw = reader.typed(body, path[:-1], "resources", dict, {})
    reader.unknown_keys(raw, path, RESOURCE_KEYS)
    memory = raw.get("memory", 0)
    resources = Resources(
        workers=reader.typed(raw, path, "workers", int, 1, at_least=1),
        cpus=reader.typed(raw, path, "cpus", (int, float), 1, at_least=0),
        gpus=reader.typed(raw, path, "gpus", (int, float), 0, at_least=0),
        memory_bytes=int(reader.quantity((*path, "memory"), memory, parse_bytes)),
    )
    if resources.workers > 1 and not stage.distributed:
        reader.tell((*path, "workers"), f"{body['uses']} runs on one worker, found {resources.workers}")
    return resources
