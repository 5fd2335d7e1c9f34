"""What a stage on Ray costs beyond a bare warm task, waited for one by one, on the same cluster."""

from __future__ import annotations

import os
import shutil
import statistics
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.findings import Findings, Measure
from benchmarks.orchestrator.graphs import make_graph
from benchmarks.orchestrator.tools import Regraft

FEW = 2
"""Stages of the run whose cost is that of any run."""
REPEATS = 3
WALL = Measure("wall ms", "less")


def measure_ray(findings: Findings, place: Path, count: int) -> None:
    """Wall milliseconds of each further stage of a chain, and of a bare task before and after."""
    from clusters.environment import prepare
    from clusters.profile import Profile

    prepare(Profile())
    import ray

    from clusters.ray_executor import RayExecutor
    from pipelines.running.worker import execute

    keeper = RayExecutor(execute, lambda *_: None, Profile())
    bare = ray.remote(lambda: None)
    ray.get([bare.remote() for _ in range(8)])

    def floor() -> float:
        return timed(lambda: [ray.get(bare.remote()) for _ in range(count)]) / count * 1000

    before = floor()
    run_here(place, FEW)  # workers have imported what they need
    few = [timed(lambda: run_here(place, FEW)) * 1000 for _ in range(REPEATS)]
    many = [timed(lambda: run_here(place, count)) * 1000 for _ in range(REPEATS)]
    after = floor()
    keeper.close()
    stages = [(ms - statistics.median(few)) / (count - FEW) for ms in many]
    findings.add("on Ray", "a bare task, before and after", {WALL: (before, after)})
    findings.add("on Ray", f"a run of {FEW} stages", {WALL: few})
    findings.add("on Ray", f"each further stage, up to {count}", {WALL: stages})
    findings.notes.append(
        f"On Ray, {statistics.median(stages) - max(before, after):.1f} ms of each further stage are the engine's own."
    )


def run_here(place: Path, count: int) -> None:
    """Run a chain that never ran in this process, where Ray is already up."""
    from pipelines.cli.session import RunOptions, run_pipeline
    from pipelines.spec.load import load
    from pipelines.store import open_store

    directory = place / "ray"
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    Regraft(place).write(directory, make_graph("chain", count))
    before = Path.cwd()
    os.chdir(directory)
    try:
        options = RunOptions(track=False, view="quiet")
        result = run_pipeline(load(directory / "p.yaml"), open_store(str(directory / ".regraft")), options)
    finally:
        os.chdir(before)
    assert result.ok, result.failures


def timed(work: Callable[[], object]) -> float:
    """Wall seconds of `work`."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began
