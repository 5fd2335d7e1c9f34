"""The order of the DAG, and where there is none the full path of a cycle."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from graphlib import CycleError, TopologicalSorter

from pipelines.spec.document import Path
from pipelines.spec.pipeline import StageSpec


def order(specs: Mapping[str, StageSpec], tell: Callable[..., None]) -> dict[str, StageSpec]:
    """The stages in an order in which each follows what it needs; ties keep the order of the file. Notes a cycle."""
    position = {name: index for index, name in enumerate(specs)}
    sorter: TopologicalSorter[str] = TopologicalSorter()
    for name, spec in specs.items():
        sorter.add(name, *(upstream for upstream in spec.upstream if upstream in specs))
    try:
        sorter.prepare()
    except CycleError as error:
        _tell_cycle(list(reversed(error.args[1])), specs, tell)
        return dict(specs)
    ordered: dict[str, StageSpec] = {}
    while sorter.is_active():
        ready = sorted(sorter.get_ready(), key=position.__getitem__)
        ordered.update((name, specs[name]) for name in ready)
        sorter.done(*ready)
    return ordered


def _tell_cycle(names: list[str], specs: Mapping[str, StageSpec], tell: Callable[..., None]) -> None:
    """`names` starts and ends with the same stage; each waits for the one after it."""
    path = _edge(specs[names[0]], names[1])
    tell(path, f"the stages wait for each other: {' → '.join(names)}", "an arrow reads: waits for")


def _edge(spec: StageSpec, upstream: str) -> Path:
    """Where the file says that `spec` waits for `upstream`."""
    for name, references in spec.inputs.items():
        if any(reference.stage == upstream for reference in references):
            return (*spec.path, "inputs", name)
    for gate in spec.expect:
        if gate.of and gate.of[0] == upstream:
            return (*spec.path, "expect", gate.metric)
    return (*spec.path, "needs")
