"""Overhead and behaviour of the engine, beside doit, Snakemake and DVC on the same graphs, in one run.

    python -m benchmarks.orchestrator [--quick] [--only regraft,doit] [--parts cost,plan,ray,behaviour]

Prints Markdown. Each peer is installed once, into an environment of its own. GNU make runs first and last as the gauge
of the machine's noise: where its wall time is more than twice its CPU time, the run says that it is worth nothing.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from benchmarks.environments import default_cache
from benchmarks.orchestrator.behaviour import behaviour_table
from benchmarks.orchestrator.cost import Sizes, cost_table, noise, plan_table
from benchmarks.orchestrator.ray_overhead import ray_table
from benchmarks.orchestrator.tools import TOOLS, Make
from pipelines.evidence import machine, versions

PARTS = ("cost", "plan", "ray", "behaviour")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.orchestrator", description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="small graphs, one repetition")
    parser.add_argument("--only", default=",".join(TOOLS), help="tools, separated by commas")
    parser.add_argument("--parts", default=",".join(PARTS), help="parts, separated by commas")
    parser.add_argument("--cache", type=Path, default=default_cache(), help="where peers are installed")
    arguments = parser.parse_args()
    names, parts = _listed(parser, arguments.only, tuple(TOOLS)), _listed(parser, arguments.parts, PARTS)
    tools = [TOOLS[name](arguments.cache) for name in names]
    sizes = Sizes.quick() if arguments.quick else Sizes()
    with tempfile.TemporaryDirectory(prefix="regraft-bench-") as place:
        directory = Path(place)
        gauge = Make(arguments.cache)
        before = noise(gauge, directory)
        if "cost" in parts:
            print(cost_table(tools, directory, sizes), end="\n\n", flush=True)
        if "plan" in parts:
            print(plan_table(tools, directory, sizes), end="\n\n", flush=True)
        if "ray" in parts and "regraft" in names:
            print(ray_table(directory, 20 if arguments.quick else 100), end="\n\n", flush=True)
        if "behaviour" in parts:
            print(behaviour_table(tools, directory), end="\n\n", flush=True)
        after = noise(gauge, directory)
    print(f"Noise gauge (make, chain of 100): before {before}; after {after}.")
    peers = ", ".join(f"{tool.name} {tool.version}" for tool in tools if tool.version)
    here, found = machine(), versions()
    told = f"{here['processor']}, {here['cpus']} cores; python {found['python']}, ray {found['ray']}"
    print(f"\n{told}; peers: {peers or 'none'}.")


def _listed(parser: argparse.ArgumentParser, text: str, known: tuple[str, ...]) -> list[str]:
    chosen = [part.strip() for part in text.split(",") if part.strip()]
    if unknown := [name for name in chosen if name not in known]:
        parser.error(f"unknown: {', '.join(unknown)}; known: {', '.join(known)}")
    return chosen


if __name__ == "__main__":
    main()
