"""The same graph of trivial stages for every tool: a chain of copies, or a fan (one → many → one)."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

Shape = Literal["chain", "fan"]


def upstream(shape: Shape, count: int) -> dict[str, list[str]]:
    """Stage name → the stages it copies or joins."""
    names = [f"s{index}" for index in range(count)]
    if shape == "chain":
        return {name: names[index - 1 : index] if index else [] for index, name in enumerate(names)}
    middle = {name: [names[0]] for name in names[1:-1]}
    return {names[0]: [], **middle, names[-1]: names[1:-1]}


def write_regraft(directory: Path, graph: dict[str, list[str]]) -> None:
    """`p.yaml`, with one distinct stage a node."""
    lines = ["name: bench", "stages:"]
    for index, (name, above) in enumerate(graph.items()):
        inputs = f"inputs: {{above: [{', '.join(above)}]}}, " if above else ""
        lines.append(f'  {name}: {{uses: "benchmarks.orchestrator.stage:Trivial", {inputs}with: {{number: {index}}}}}')
    (directory / "p.yaml").write_text("\n".join(lines) + "\n")


def write_make(directory: Path, graph: dict[str, list[str]]) -> None:
    """A `Makefile`."""
    lines = [f"all: {list(graph)[-1]}.out", ""]
    for name, above in graph.items():
        sources = [f"{source}.out" for source in above]
        action = f"cat {' '.join(sources)} > $@" if sources else "echo start > $@"
        lines.append(f"{name}.out: {' '.join(sources)}\n\t@{action}")
    (directory / "Makefile").write_text("\n".join(lines) + "\n")


def write_doit(directory: Path, graph: dict[str, list[str]]) -> None:
    """A `dodo.py`."""
    lines = ["def task_all():"]
    for name, above in graph.items():
        sources = [f"{source}.out" for source in above]
        action = f"cat {' '.join(sources)} > {name}.out" if sources else f"echo start > {name}.out"
        lines.append(
            f"    yield dict(name={name!r}, actions=[{action!r}], file_dep={sources!r}, targets=['{name}.out'])"
        )
    (directory / "dodo.py").write_text("\n".join(lines) + "\n")
