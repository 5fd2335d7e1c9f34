"""What running and planning cost: CPU seconds of the process tree beside wall time, least, median and most."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.orchestrator.graphs import Graph, Shape, make_graph
from benchmarks.orchestrator.measure import Cost, Spread, repeat, run
from benchmarks.orchestrator.tools import QUIET, Tool

Cold = tuple[str, int, dict[str, float]]
"""A graph, its stages, and the CPU seconds of a cold run by tool."""
COLUMNS = ("what", "tool", "n", "CPU s, median (least–most)", "wall s", "peak MiB", "stages run", "CPU × regraft")


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


def cost_table(tools: Sequence[Tool], place: Path, sizes: Sizes) -> str:
    """Cold runs, runs with nothing to do, and runs after one parameter of the last stage changed."""
    rows, cold = [_header(COLUMNS)], []
    for shape, count in sizes.runs:
        graph = make_graph(shape, count)
        name = f"{shape} of {count}" if shape != "diamonds" else f"{count} diamonds of {len(graph.above)}"
        measured = {tool.name: _runs(tool, place, graph, sizes) for tool in tools}
        for what in ("cold", "nothing to do", "one parameter"):
            rows += _rows(f"{name}: {what}", {tool: costs[what] for tool, costs in measured.items()})
        cold.append((name, len(graph.above), {tool: _median(costs["cold"]) for tool, costs in measured.items()}))
    for larger in cold[1:]:
        rows += _per_stage(cold[0], larger)
    return "\n".join(rows)


def plan_table(tools: Sequence[Tool], place: Path, sizes: Sizes) -> str:
    """Planning a fan of distinct stages that never ran."""
    rows = [_header(COLUMNS)]
    for count in sizes.plans:
        graph = make_graph("fan", count)
        costs = {tool.name: _plans(tool, place, graph, sizes.cold) for tool in tools}
        rows += _rows(f"plan of {count:,}, never run", costs)
    return "\n".join(rows)


def noise(gauge: Tool, place: Path) -> str:
    """How far the machine is from quiet, as make sees it."""
    costs = [_cold(gauge, place, make_graph("chain", 100)) for _ in range(3)]
    wall, cpu = min(cost.wall_seconds for cost in costs), min(cost.cpu_seconds for cost in costs)
    verdict = "**too noisy: do not use these figures**" if wall > 2 * cpu else "quiet enough"
    return f"{wall:.2f} s wall, {cpu:.2f} s CPU ({verdict})"


def _runs(tool: Tool, place: Path, graph: Graph, sizes: Sizes) -> dict[str, list[Cost]]:
    cold = repeat(sizes.cold, lambda: _cold(tool, place, graph))
    directory = place / tool.name
    idle = repeat(sizes.idle, lambda: _counted(tool, directory))
    marks = iter(range(1, sizes.changed + 1))

    def change() -> Cost:
        tool.write(directory, graph.marked(graph.last, str(next(marks))))
        return _counted(tool, directory)

    return {"cold": cold, "nothing to do": idle, "one parameter": repeat(sizes.changed, change)}


def _plans(tool: Tool, place: Path, graph: Graph, times: int) -> list[Cost]:
    directory = _fresh(tool, place, graph)
    return repeat(times, lambda: run(tool.plan_command, directory, QUIET, may_fail=tool.may_fail_to_plan))


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


def _header(columns: Sequence[str]) -> str:
    return f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}"


def _rows(what: str, costs: dict[str, list[Cost]]) -> list[str]:
    return [_row(what, tool, found, costs.get("regraft")) for tool, found in costs.items()]


def _row(what: str, tool: str, costs: list[Cost], ours: list[Cost] | None) -> str:
    cpu, wall = (Spread.of([getattr(cost, name) for cost in costs]) for name in ("cpu_seconds", "wall_seconds"))
    peak = max(cost.peak_mebibytes for cost in costs)
    executed = "/".join(dict.fromkeys("" if cost.executed is None else str(cost.executed) for cost in costs))
    if any(cost.status for cost in costs):
        executed = f"ended with {costs[-1].status}"
    ratio = f"{cpu.median / Spread.of([cost.cpu_seconds for cost in ours]).median:.2f}" if ours else ""
    cells = (what, tool, len(costs), _told(cpu), _told(wall), f"{peak:.0f}", executed, ratio)
    return f"| {' | '.join(map(str, cells))} |"


def _told(spread: Spread) -> str:
    return f"{spread.median:.2f} ({spread.least:.2f}–{spread.most:.2f})"


def _per_stage(smaller: Cold, larger: Cold) -> list[str]:
    """CPU milliseconds that each further stage costs."""
    (small, few, less), (large, many, more) = smaller, larger
    each = {tool: (cpu - less[tool]) / (many - few) * 1000 for tool, cpu in more.items()}
    ours = each.get("regraft")
    ratios = {tool: f"{ms / ours:.2f}" if ours else "" for tool, ms in each.items()}
    what = f"a stage, from {small} to {large}"
    return [f"| {what} | {tool} |  | {ms:.1f} ms |  |  |  | {ratios[tool]} |" for tool, ms in each.items()]


def _median(costs: list[Cost]) -> float:
    return Spread.of([cost.cpu_seconds for cost in costs]).median
