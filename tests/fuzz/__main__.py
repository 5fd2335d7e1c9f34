"""The whole series, from a terminal."""

from __future__ import annotations

import argparse
import faulthandler
import os
import sys
import tempfile
from collections import Counter
from pathlib import Path

from tests.fuzz.corpus import originals
from tests.fuzz.trial import Series

STUCK_SECONDS = 120
"""Wall time after which one file is taken to hang where no signal reaches: the process ends with a traceback."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description="Change pipeline files at random.")
    parser.add_argument("--files", type=int, default=10_000, help="how many")
    parser.add_argument("--seed", type=int, default=0, help="which series")
    parser.add_argument("--only", type=int, help="make just this file of the series, and print it with its answer")
    arguments = parser.parse_args()
    numbers = range(arguments.files) if arguments.only is None else range(arguments.only, arguments.only + 1)
    counts: Counter[str] = Counter()
    slowest = (0.0, 0)
    with tempfile.TemporaryDirectory(prefix="regraft-fuzz-") as place:
        os.chdir(place)
        for number, original, data, answer, seconds in Series(Path(place), originals(), arguments.seed).run(numbers):
            faulthandler.dump_traceback_later(STUCK_SECONDS, exit=True)
            counts[answer.verdict] += 1
            slowest = max(slowest, (seconds, number))
            if answer.verdict == "BAD" or arguments.only is not None:
                again = f"python -m tests.fuzz --seed {arguments.seed} --only {number}"
                print(f"\n--- {original.name}, file {number}: {answer.verdict}   ({again})\n{answer.text}", flush=True)
            if arguments.only is not None:
                sys.stdout.buffer.write(data)
    faulthandler.cancel_dump_traceback_later()
    told = ", ".join(f"{count:,} {verdict}" for verdict, count in sorted(counts.items()))
    print(f"\n{sum(counts.values()):,} files: {told}; slowest {slowest[0]:.2f} CPU s (file {slowest[1]})")
    return 1 if counts["BAD"] else 0


if __name__ == "__main__":
    sys.exit(main())
