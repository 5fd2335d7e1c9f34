"""Overhead and behaviour of the engine, beside doit, Snakemake and DVC on the same graphs, in one run.

    python -m benchmarks.orchestrator [--quick] [--only regraft,doit] [--parts cost,plan,ray,behaviour]

Each peer is installed once, into an environment of its own. GNU make runs first and last as the gauge
of the machine's noise: where its wall time is more than twice its CPU time, the run says that it is worth nothing.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from benchmarks.environments import default_cache
from benchmarks.findings import CPU_SECONDS, Findings
from benchmarks.orchestrator.behaviour import behaviour_table
from benchmarks.orchestrator.cost import EACH, Sizes, measure_plans, measure_runs, noise
from benchmarks.orchestrator.ray_overhead import measure_ray
from benchmarks.orchestrator.tools import TOOLS, Make, Tool
from benchmarks.publish import add_json_option, publish

PARTS = ("cost", "plan", "ray", "behaviour")


def main() -> None:
    options = _options()
    publish(measure([TOOLS[name](options.cache) for name in options.only], options), options)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.orchestrator", description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="small graphs, one repetition")
    parser.add_argument("--only", default=",".join(TOOLS), help="tools, separated by commas")
    parser.add_argument("--parts", default=",".join(PARTS), help="parts, separated by commas")
    parser.add_argument("--cache", type=Path, default=default_cache(), help="where peers are installed")
    add_json_option(parser)
    options = parser.parse_args()
    options.only = _listed(parser, options.only, tuple(TOOLS))
    options.parts = _listed(parser, options.parts, PARTS)
    return options


def measure(tools: list[Tool], options: argparse.Namespace) -> Findings:
    """A row for each graph, what was done with it, and tool; the behaviour as a table of its own."""
    sizes = Sizes.quick() if options.quick else Sizes()
    findings = Findings("Stages that take no time", {tool.name: tool.version for tool in tools if tool.version})
    with tempfile.TemporaryDirectory(prefix="regraft-bench-") as place:
        directory, gauge = Path(place), Make(options.cache)
        before = noise(gauge, directory)
        if "cost" in options.parts:
            _told("cost")
            measure_runs(findings, tools, directory, sizes)
        if "plan" in options.parts:
            _told("plan")
            measure_plans(findings, tools, directory, sizes)
        for tool in tools:
            if tool.name != "regraft":
                findings.compare("regraft", tool.name, CPU_SECONDS, EACH)
        if "ray" in options.parts and any(tool.name == "regraft" for tool in tools):
            _told("ray")
            measure_ray(findings, directory, 20 if options.quick else 100)
        if "behaviour" in options.parts:
            _told("behaviour")
            findings.more = behaviour_table(tools, directory)
        after = noise(gauge, directory)
    findings.notes.append(f"Noise gauge (make, chain of 100): before {before}; after {after}.")
    return findings


def _told(part: str) -> None:
    print(part, file=sys.stderr, flush=True)


def _listed(parser: argparse.ArgumentParser, text: str, known: tuple[str, ...]) -> list[str]:
    chosen = [part.strip() for part in text.split(",") if part.strip()]
    if unknown := [name for name in chosen if name not in known]:
        parser.error(f"unknown: {', '.join(unknown)}; known: {', '.join(known)}")
    return chosen


if __name__ == "__main__":
    main()
