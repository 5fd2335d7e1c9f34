"""Overhead of the engine, beside GNU make and doit on the same graphs, in one run.

    python -m benchmarks.orchestrator [--quick]

make is the gauge of the machine's noise: where its wall time is far above its CPU time, trust the CPU column. doit is
the fastest peer that, like us, knows content from time stamps. Ratios are CPU seconds, ours over theirs.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.orchestrator.graphs import Shape, upstream, write_doit, write_make, write_regraft
from benchmarks.orchestrator.measure import Cost, median, run
from pipelines.evidence import machine, versions

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {"PYTHONPATH": str(ROOT)}
REGRAFT = [sys.executable, "-m", "pipelines"]
INLINE = ["run", "p.yaml", "--inline", "--no-track", "--view", "quiet"]


def main() -> None:
    """Measure, and print one table."""
    parser = argparse.ArgumentParser(description="Overhead of the engine, beside GNU make and doit.")
    parser.add_argument("--quick", action="store_true", help="smaller graphs, one repetition")
    quick = parser.parse_args().quick
    table = Table(
        "what", "regraft CPU s", "wall s", "MiB", "make CPU s", "doit CPU s", "÷ doit", box=None, padding=(0, 2)
    )
    with tempfile.TemporaryDirectory(prefix="regraft-bench-") as place:
        doit = install_doit(Path(place))
        for shape, count in [("chain", 20), ("chain", 100), ("fan", 100 if quick else 500)]:
            compare_runs(table, Path(place), doit, shape, count, 1 if quick else 5)
        for count in (1_000,) if quick else (1_000, 10_000):
            compare_plans(table, Path(place), doit, count, 1 if quick else 3)
        ray_overhead(table, Path(place), 20 if quick else 100)
    console = Console(width=130)
    console.print(table)
    console.print(machine(), {name: versions()[name] for name in ("python", "ray")})


def install_doit(place: Path) -> list[str]:
    """Install doit into an environment of its own."""
    subprocess.run([sys.executable, "-m", "venv", str(place / "doit")], check=True)
    pip = [str(place / "doit/bin/pip"), "install", "--quiet", "--disable-pip-version-check", "doit==0.37.0"]
    subprocess.run(pip, check=True, stderr=subprocess.DEVNULL)
    return [str(place / "doit/bin/doit")]


def compare_runs(table: Table, place: Path, doit: list[str], shape: Shape, count: int, repeats: int) -> None:
    """Cold and no-op runs of one graph; every tool in turn, `repeats` times."""
    commands = {"regraft": REGRAFT + INLINE, "make": ["make", "-s"], "doit": [*doit, "-v0"]}
    cold: dict[str, list[Cost]] = {name: [] for name in commands}
    idle: dict[str, list[Cost]] = {name: [] for name in commands}
    for _ in range(repeats):
        for name, command in commands.items():
            directory = fresh(place, shape, count)
            cold[name].append(run(command, directory, ENVIRONMENT))
            idle[name].append(run(command, directory, ENVIRONMENT))
    add(table, f"no-op run, {shape} of {count}", {name: median(costs) for name, costs in idle.items()})
    costs = {name: median(costs) for name, costs in cold.items()}
    add(table, f"cold run, {shape} of {count}", costs)
    stage = {name: (cost.cpu_seconds - median(idle[name]).cpu_seconds) / count * 1000 for name, cost in costs.items()}
    row = [f"{stage['regraft']:.1f} ms", "", "", f"{stage['make']:.1f} ms", f"{stage['doit']:.1f} ms"]
    table.add_row("  a stage", *row, f"{stage['regraft'] / stage['doit']:.2f}")


def compare_plans(table: Table, place: Path, doit: list[str], count: int, repeats: int) -> None:
    """Planning a fan that never ran."""
    directory = fresh(place, "fan", count)
    commands = {
        "regraft": [*REGRAFT, "plan", "p.yaml", "--json"],
        "make": ["make", "-n", "-s"],
        "doit": [*doit, "list", "--all", "-s"],
    }
    costs = {
        name: median([run(command, directory, ENVIRONMENT) for _ in range(repeats)])
        for name, command in commands.items()
    }
    add(table, f"plan, never run, fan of {count:,}", costs)


def ray_overhead(table: Table, place: Path, count: int) -> None:
    """What a stage on Ray costs beyond a bare Ray task, waited for one by one, on the same cluster."""
    from clusters.environment import prepare
    from clusters.profile import Profile

    prepare(Profile())
    import ray

    from clusters.ray_executor import RayExecutor
    from pipelines.cli.session import RunOptions
    from pipelines.worker import execute

    keeper = RayExecutor(execute, lambda *_: None, Profile())
    bare = ray.remote(lambda: None)
    ray.get([bare.remote() for _ in range(8)])
    floor = timed(lambda: [ray.get(bare.remote()) for _ in range(count)]) / count
    directory = fresh(place, "chain", count)
    stage = timed(lambda: run_here(directory, RunOptions(track=False, view="quiet"))) / count
    keeper.close()
    table.add_row(
        f"Ray, chain of {count}: wall a stage",
        f"{stage * 1000:.1f} ms",
        "",
        "",
        "",
        "",
        f"bare task {floor * 1000:.1f} ms",
    )


def run_here(directory: Path, options: object) -> None:
    """Run the graph in this process, where Ray is already up."""
    from pipelines.cli.session import RunOptions, run_pipeline
    from pipelines.spec.load import load
    from pipelines.store import open_store

    assert isinstance(options, RunOptions)
    result = run_pipeline(load(directory / "p.yaml"), open_store(str(directory / ".regraft")), options)
    assert result.ok, result.failures


def timed(work: Callable[[], object]) -> float:
    """Wall seconds of `work`."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def fresh(place: Path, shape: Shape, count: int) -> Path:
    """An empty directory with the graph written for every tool."""
    directory = place / "work"
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    graph = upstream(shape, count)
    for write in (write_regraft, write_make, write_doit):
        write(directory, graph)
    return directory


def add(table: Table, what: str, costs: dict[str, Cost]) -> None:
    """One row."""
    ours = costs["regraft"]
    ratio = ours.cpu_seconds / max(costs["doit"].cpu_seconds, 1e-9)
    table.add_row(
        what,
        f"{ours.cpu_seconds:.2f}",
        f"{ours.wall_seconds:.2f}",
        f"{ours.peak_mebibytes:.0f}",
        f"{costs['make'].cpu_seconds:.2f}",
        f"{costs['doit'].cpu_seconds:.2f}",
        f"{ratio:.2f}",
    )


if __name__ == "__main__":
    main()
