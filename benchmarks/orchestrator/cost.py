"""What running and planning cost: CPU seconds of the process tree beside wall time, and memory."""

from __future__ import annotations

import shutil
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from pathlib import Path

from benchmarks.findings import CPU_SECONDS, PEAK_MIB, SECONDS, Findings, Measure
from benchmarks.orchestrator.graphs import Graph, Shape, make_graph
from benchmarks.orchestrator.measure import Cost, run, turns
from benchmarks.orchestrator.tools import QUIET, Tool

Cold = tuple[str, int, dict[str, float]]
"""A graph, its stages, and the CPU seconds of a cold run by tool."""
RAN = Measure("stages run")
EACH = Measure("CPU ms a stage", "less")


@dataclass(frozen=True)
class Sizes:
    """Which graphs are run and planned, and how often."""

    runs: tuple[tuple[Shape, int], ...] = (("chain", 20), ("chain", 100), ("fan", 500), ("diamonds", 10))
    plans: tuple[int, ...] = (1_000, 10_000)
    cold: int = 3
    idle: int = 5
    changed: int = 3

    @classmethod
    def quick(cls) -> Sizes:
        """Enough to see that everything works."""
        return cls((("chain", 10), ("diamonds", 1)), (200,), 1, 1, 1)


def measure_runs(findings: Findings, tools: Sequence[Tool], place: Path, sizes: Sizes) -> None:
    """Cold runs, runs with nothing to do, and runs after one parameter of the last stage changed."""
    cold: list[Cold] = []
    for shape, size in sizes.runs:
        graph = make_graph(shape, size)
        name = f"{shape} of {size}" if shape != "diamonds" else f"{size} diamonds of {len(graph.above)}"
        measured = _runs(tools, place, graph, sizes)
        for what, costs in measured.items():
            _add(findings, f"{name}: {what}", costs)
        cold.append((name, len(graph.above), {tool: _median(costs) for tool, costs in measured["cold"].items()}))
    for larger in cold[1:]:
        _add_each(findings, cold[0], larger)


def measure_plans(findings: Findings, tools: Sequence[Tool], place: Path, sizes: Sizes) -> None:
    """Planning a fan of distinct stages that never ran."""
    for size in sizes.plans:
        graph = make_graph("fan", size)
        contenders = {tool.name: _planner(tool, place, graph) for tool in tools}
        _add(findings, f"plan of {size:,}, never run", turns(sizes.cold, contenders))


def noise(gauge: Tool, place: Path) -> str:
    """How far the machine is from quiet, as make sees it."""
    costs = [_cold(gauge, place, make_graph("chain", 100)) for _ in range(3)]
    wall, cpu = min(cost.wall_seconds for cost in costs), min(cost.cpu_seconds for cost in costs)
    verdict = "**too noisy: do not use these figures**" if wall > 2 * cpu else "quiet enough"
    return f"{wall:.2f} s wall, {cpu:.2f} s CPU ({verdict})"


def _runs(tools: Sequence[Tool], place: Path, graph: Graph, sizes: Sizes) -> dict[str, dict[str, list[Cost]]]:
    """By what was done, then by tool."""
    return {
        "cold": turns(sizes.cold, {tool.name: partial(_cold, tool, place, graph) for tool in tools}),
        "nothing to do": turns(sizes.idle, {tool.name: partial(_counted, tool, place / tool.name) for tool in tools}),
        "one parameter": turns(sizes.changed, {tool.name: _changer(tool, place, graph) for tool in tools}),
    }


def _changer(tool: Tool, place: Path, graph: Graph) -> Callable[[], Cost]:
    marks = count(1)

    def change() -> Cost:
        tool.write(place / tool.name, graph.marked(graph.last, str(next(marks))))
        return _counted(tool, place / tool.name)

    return change


def _planner(tool: Tool, place: Path, graph: Graph) -> Callable[[], Cost]:
    directory = _fresh(tool, place, graph)
    return lambda: run(tool.plan_command, directory, QUIET, may_fail=tool.may_fail_to_plan)


def _cold(tool: Tool, place: Path, graph: Graph) -> Cost:
    return _counted(tool, _fresh(tool, place, graph))


def _counted(tool: Tool, directory: Path) -> Cost:
    """One run, and how many stages it executed."""
    ran = directory / "executed"
    ran.unlink(missing_ok=True)
    cost = run(tool.run_command, directory, QUIET)
    return replace(cost, executed=len(ran.read_text().split()) if ran.exists() else 0)


def _fresh(tool: Tool, place: Path, graph: Graph) -> Path:
    """An empty directory in which nothing ran, with the graph."""
    directory = place / tool.name
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    tool.prepare(directory)
    tool.write(directory, graph)
    return directory


def _add(findings: Findings, what: str, costs: dict[str, list[Cost]]) -> None:
    for tool, found in costs.items():
        if status := next((cost.status for cost in found if cost.status), 0):
            findings.notes.append(f"{tool}, {what}: ended with {status}.")
        figures = {
            CPU_SECONDS: [cost.cpu_seconds for cost in found],
            SECONDS: [cost.wall_seconds for cost in found],
            PEAK_MIB: [cost.peak_mebibytes for cost in found],
        }
        ran = [cost.executed for cost in found if cost.executed is not None]
        findings.add(what, tool, figures | ({RAN: ran} if ran else {}))


def _add_each(findings: Findings, smaller: Cold, larger: Cold) -> None:
    """CPU milliseconds that each further stage costs."""
    (small, few, less), (large, many, more) = smaller, larger
    for tool, cpu in more.items():
        each = (cpu - less[tool]) / (many - few) * 1000
        findings.add(f"a stage, from {small} to {large}", tool, {EACH: each})


def _median(costs: list[Cost]) -> float:
    return statistics.median(cost.cpu_seconds for cost in costs)
