"""One small class a tool: how it is installed, how it is told a graph, how it runs and plans one."""

from __future__ import annotations

import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Final

from benchmarks.environments import ensure
from benchmarks.orchestrator.graphs import Graph

ROOT: Final = Path(__file__).resolve().parents[2]
QUIET: Final = {"DVC_NO_ANALYTICS": "1", "DVC_DAEMON": "0", "DO_NOT_TRACK": "1", "PYTHONPATH": str(ROOT)}
"""No peer reports to its makers, and our own stages are importable."""


class Tool(ABC):
    """A tool that runs graphs. Every stage appends its name to the file `executed`."""

    name: ClassVar[str]
    version: ClassVar[str] = ""
    may_fail_to_plan: ClassVar[bool] = False

    def __init__(self, cache: Path) -> None:
        self.bin = ensure(cache, self.name, self.version) if self.version else Path()

    @property
    def run_command(self) -> list[str]:
        """Bring everything up to date, one stage at a time."""
        return []

    @property
    def plan_command(self) -> list[str]:
        """Tell what would be done."""
        return []

    def prepare(self, directory: Path) -> None:
        """Make `directory` a project, where the tool needs that; its cost is not counted."""

    @abstractmethod
    def write(self, directory: Path, graph: Graph) -> None:
        """Write the file that describes the graph."""


def shell(stage: str, above: Sequence[str], mark: str) -> str:
    """What a stage does, as a command. What it read is not written again: that would grow tenfold in each diamond."""
    sources = " ".join(f"{source}.out" for source in above)
    return f"echo {stage} >> executed; cat /dev/null {sources} > /dev/null; echo {stage} {mark} > {stage}.out"


class Regraft(Tool):
    """This project, without Ray and without MLflow, as the peers are."""

    name = "regraft"

    @property
    def run_command(self) -> list[str]:
        return [sys.executable, "-m", "pipelines", "run", "p.yaml", "--inline", "--no-track", "--view", "quiet"]

    @property
    def plan_command(self) -> list[str]:
        return [sys.executable, "-m", "pipelines", "plan", "p.yaml", "--json"]

    def write(self, directory: Path, graph: Graph) -> None:
        lines = ["name: bench", "stages:"]
        for number, (stage, above) in enumerate(graph.above.items()):
            inputs = f"inputs: {{above: [{', '.join(above)}]}}, " if above else ""
            values = f'{{number: {number}, mark: "{graph.marks[stage]}"}}'
            lines.append(f'  {stage}: {{uses: "benchmarks.orchestrator.stage:Trivial", {inputs}with: {values}}}')
        (directory / "p.yaml").write_text("\n".join(lines) + "\n")


class Make(Tool):
    """GNU make: the least that running a graph can cost, and the gauge of the machine's noise."""

    name = "make"
    run_command = ["make", "-s"]
    plan_command = ["make", "-n", "-s"]

    def write(self, directory: Path, graph: Graph) -> None:
        lines = [f"all: {graph.last}.out", ""]
        for stage, above in graph.above.items():
            sources = " ".join(f"{source}.out" for source in above)
            lines.append(f"{stage}.out: {sources}\n\t@{shell(stage, above, graph.marks[stage])}")
        (directory / "Makefile").write_text("\n".join(lines) + "\n")


class Doit(Tool):
    """doit, with the mark of each stage as its configuration."""

    name, version = "doit", "0.37.0"

    @property
    def run_command(self) -> list[str]:
        return [str(self.bin / "doit"), "-v0"]

    @property
    def plan_command(self) -> list[str]:
        return [str(self.bin / "doit"), "list", "--all", "-s"]

    def write(self, directory: Path, graph: Graph) -> None:
        lines = ["from doit.tools import config_changed", "", "def task_all():"]
        for stage, above in graph.above.items():
            mark = graph.marks[stage]
            lines.append(
                f"    yield dict(name={stage!r}, actions=[{shell(stage, above, mark)!r}], "
                f"file_dep={[f'{source}.out' for source in above]!r}, targets=['{stage}.out'], "
                f"uptodate=[config_changed({mark!r})])"
            )
        (directory / "dodo.py").write_text("\n".join(lines) + "\n")


class Snakemake(Tool):
    """Snakemake, one rule a stage, one core."""

    name, version = "snakemake", "9.27.1"

    @property
    def run_command(self) -> list[str]:
        return [str(self.bin / "snakemake"), "-c1", "--quiet", "all"]

    @property
    def plan_command(self) -> list[str]:
        return [str(self.bin / "snakemake"), "-c1", "--quiet", "all", "--dry-run"]

    def write(self, directory: Path, graph: Graph) -> None:
        lines = [f"rule all:\n    input: '{graph.last}.out'\n"]
        for stage, above in graph.above.items():
            inputs = f"    input: {', '.join(repr(f'{source}.out') for source in above)}\n" if above else ""
            command = shell(stage, above, "{params.mark}")
            params = f"    params: mark={graph.marks[stage]!r}\n"
            lines.append(f"rule {stage}:\n{inputs}    output: '{stage}.out'\n{params}    shell: {command!r}\n")
        (directory / "Snakefile").write_text("\n".join(lines))


class Dvc(Tool):
    """DVC, without git; each stage is one of `dvc.yaml`."""

    name, version = "dvc", "3.67.1"
    may_fail_to_plan = True

    @property
    def run_command(self) -> list[str]:
        return [str(self.bin / "dvc"), "repro", "--quiet"]

    @property
    def plan_command(self) -> list[str]:
        return [str(self.bin / "dvc"), "repro", "--dry", "--quiet"]

    def prepare(self, directory: Path) -> None:
        for command in (
            ["init", "--no-scm"],
            ["config", "core.analytics", "false"],
            ["config", "core.check_update", "false"],
        ):
            subprocess.run([str(self.bin / "dvc"), *command, "--quiet"], cwd=directory, check=True, capture_output=True)

    def write(self, directory: Path, graph: Graph) -> None:
        lines = ["stages:"]
        for stage, above in graph.above.items():
            lines += [f"  {stage}:", f"    cmd: '{shell(stage, above, graph.marks[stage])}'"]
            if above:
                lines.append(f"    deps: [{', '.join(f'{source}.out' for source in above)}]")
            lines.append(f"    outs: [{stage}.out]")
        (directory / "dvc.yaml").write_text("\n".join(lines) + "\n")


TOOLS: Final[dict[str, type[Tool]]] = {tool.name: tool for tool in (Regraft, Make, Doit, Snakemake, Dvc)}
