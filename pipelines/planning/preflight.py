"""What can be known to fail before any compute: parameters, packages, resources nobody can give, a full disk."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from clusters.executor import Capacity, Request
from pipelines.planning.plan import Plan, raise_together
from pipelines.spec.pipeline import StageSpec
from pipelines.spec.quantities import format_bytes
from stages.errors import UserError

LEAST_FREE_BYTES: Final = 64 << 20


def preflight(plan: Plan, disk: Path) -> None:
    """Check every stage that may run. Raises UserError telling all problems."""
    problems = [*_stage_problems(plan), *_disk_problems(disk)]
    raise_together(problems)


def check_capacity(specs: Iterable[StageSpec], capacity: Capacity, where: str) -> None:
    """Refuse what the cluster can never give. Raises UserError telling every such stage."""
    problems = [
        UserError(message, where=f"{spec.place}: stage {spec.name!r}", fix=fix)
        for spec in specs
        for message, fix in beyond(spec, capacity, where)
    ]
    raise_together(problems)


def _stage_problems(plan: Plan) -> Iterable[UserError]:
    for spec in plan.may_run:
        where = f"{spec.place}: stage {spec.name!r} ({spec.uses})"
        for module, extra in spec.stage.requires.items():
            if importlib.util.find_spec(module) is None:
                yield UserError(f"needs the module {module!r}", where=where, fix=f"pip install 'regraft[{extra}]'")
        try:
            spec.make().preflight()
        except UserError as error:
            yield UserError(error.message, where=where, fix=error.fix)


def _disk_problems(disk: Path) -> Iterable[UserError]:
    free = shutil.disk_usage(disk).free
    if free < LEAST_FREE_BYTES:
        fix = "free some space, or use another disk with --store"
        yield UserError(f"the disk of the store {disk} is full: {format_bytes(free)} free", fix=fix)


def beyond(spec: StageSpec, capacity: Capacity, where: str) -> list[tuple[str, str]]:
    """What a stage asks for that `where` can never give: message and fix, each."""
    return [*_too_much(spec, capacity, where)] or [*_scattered(spec, capacity, where)]


def _too_much(spec: StageSpec, capacity: Capacity, where: str) -> Iterable[tuple[str, str]]:
    """Each resource of which there is not enough, whatever the others."""
    asked = spec.resources
    limits = (
        ("cpus", asked.cpus, capacity.node_cpus, capacity.total_cpus),
        ("gpus", asked.gpus, capacity.node_gpus, capacity.total_gpus),
    )
    for name, amount, on_node, in_all in limits:
        fix = f"--set {spec.name.partition('[')[0]}.resources.{name}=…, or run on another cluster"
        if amount > on_node:
            yield f"asks for {amount:g} {name} a worker; the largest node of {where} has {on_node:g}", fix
        elif round(amount * asked.workers, 4) > in_all:
            total = amount * asked.workers
            yield f"asks for {asked.workers} × {amount:g} = {total:g} {name}; {where} has {in_all:g} in all", fix
    if asked.memory_bytes > capacity.node_memory_bytes:
        most = format_bytes(capacity.node_memory_bytes)
        fix = f"--set {spec.name.partition('[')[0]}.resources.memory=…, or run on another cluster"
        yield f"asks for {format_bytes(asked.memory_bytes)}; the largest node of {where} can give {most}", fix


def _scattered(spec: StageSpec, capacity: Capacity, where: str) -> Iterable[tuple[str, str]]:
    """That no node has all that a worker asks for, or the nodes, all of them empty, no room for all workers."""
    asked = spec.resources
    request = Request(asked.workers, asked.cpus, asked.gpus, asked.memory_bytes)
    room = sum(node.num_workers(request) for node in capacity.nodes)
    if capacity.nodes and room < asked.workers:
        each = f"{asked.cpus:g} cpus, {asked.gpus:g} gpus and {format_bytes(asked.memory_bytes)}"
        fix = f"--set {spec.name.partition('[')[0]}.resources.workers=…, or run on another cluster"
        yield f"asks for {asked.workers} workers of {each} each; the nodes of {where} have room for {room}", fix
