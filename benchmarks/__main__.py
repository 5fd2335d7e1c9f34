"""All benchmarks one after another, each in a process of its own, into one table.

    python -m benchmarks [--quick] [--only NAME…] [--resume] [--cache DIRECTORY] [--out DIRECTORY]
    python -m benchmarks --list

Writes `table.md` and `table.json` (every figure of every turn) after each part, so that stopping it loses nothing, and
prints the table at the end. `--resume` goes on with the table in `--out`: what it has is not measured again. A part
that fails is told in the table and does not stop the others; the exit status is 1 then. `--only` takes parts
(`hybrid.rule`) and families (`hybrid`). `--quick` makes all of it small: it tells whether everything works here, and
its figures mean nothing. Peers are installed once, each into an environment of its own below `--cache`. Let nothing
else run on the machine.
"""

from __future__ import annotations

import argparse
import shlex
import signal
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.status import Status

from benchmarks.environments import default_cache
from benchmarks.parts import Part, chosen
from benchmarks.running import Estimate, Outcome, run_part, span
from benchmarks.table import circumstances
from benchmarks.whole import earlier, summary, write

OUT = Path("build/benchmarks")


def main() -> None:
    options = _options()
    parts = chosen(options.only)
    if options.list:
        for part in parts:
            print(_listed(part, options))
        return
    around = circumstances()
    outcomes = earlier(options.out, around, quick=options.quick) if options.resume else []
    try:
        _run(parts, options, around, outcomes)
    except KeyboardInterrupt:
        print(f"stopped; what was measured is in {options.out}", file=sys.stderr)
        sys.exit(130)
    print((options.out / "table.md").read_text(encoding="utf-8"))
    sys.exit(any(outcome.state == "failed" for outcome in outcomes))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small: does everything work here?")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="parts or families of parts")
    parser.add_argument("--resume", action="store_true", help="into the table in --out, what it does not have yet")
    parser.add_argument("--list", action="store_true", help="the parts, and the command of each alone")
    parser.add_argument("--cache", type=Path, help=f"where peers are installed; {default_cache()} without it")
    parser.add_argument("--out", type=Path, default=OUT, help=f"where the table and the logs go; {OUT} without it")
    return parser.parse_args()


def _listed(part: Part, options: argparse.Namespace) -> str:
    command = shlex.join(_command(part, options))
    taken = span(part.expected_seconds(quick=options.quick))
    return f"{part.name:17} {taken:>10}  {part.about}\n{'':29} {command}"


def _run(parts: list[Part], options: argparse.Namespace, around: dict[str, Any], outcomes: list[Outcome]) -> None:
    console = Console(stderr=True, highlight=False)
    had = {outcome.command for outcome in outcomes if outcome.state == "done"}
    left = [part for part in parts if shlex.join(_command(part, options)) not in had]
    if len(left) < len(parts):
        console.print(f"{len(parts) - len(left)} of {len(parts)} parts are in {options.out} already")
    estimate = Estimate([part.expected_seconds(quick=options.quick) for part in left])
    for number, part in enumerate(left, 1):
        place = f"[{number}/{len(left)}] {part.name}"
        console.print(escape(f"{place}: {part.about}; about {span(estimate.left())} left in all"), soft_wrap=True)
        with console.status("") as status:
            outcome = _one(part, options, status, estimate, place)
        estimate.finished(outcome.seconds)
        outcomes[:] = [*(other for other in outcomes if other.name != part.name), outcome]
        write(options.out, around, outcomes, quick=options.quick)
        console.print(escape(f"{place}: {summary(outcome)}"), soft_wrap=True)


def _command(part: Part, options: argparse.Namespace) -> list[str]:
    return part.command(quick=options.quick, cache=options.cache)


def _one(part: Part, options: argparse.Namespace, status: Status, estimate: Estimate, place: str) -> Outcome:
    began = time.monotonic()

    def look(line: str) -> None:
        spent = time.monotonic() - began
        status.update(escape(f"{place} {span(spent)}, about {span(estimate.left(spent))} left in all  {line[:80]}"))

    return run_part(part, _command(part, options), options.out / "logs", look)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    main()
