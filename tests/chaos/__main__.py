"""Many trials, from a terminal."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

from tests.chaos.disturb import KINDS, Kind, can_mount, own_mounts
from tests.chaos.pipelines import SUBJECTS, Subject
from tests.chaos.trial import Place, Report, Undisturbed, trial, undisturbed

INSIDE = "REGRAFT_CHAOS_MAY_MOUNT"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description="Disturb runs at random moments.")
    parser.add_argument("--seeds", type=int, default=20, help="how many trials; each kind comes in turn")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--kinds", default=",".join(KINDS), help="separated by commas")
    parser.add_argument("--pipeline", choices=SUBJECTS, default="real")
    parser.add_argument("--workers", type=int, default=2, help="of the training stage; a rank can die from two on")
    parser.add_argument("--keep", action="store_true", help="keep the directories of trials with problems")
    arguments = parser.parse_args()
    kinds: list[Kind] = [kind for kind in KINDS if kind in arguments.kinds.split(",")]
    if "disk" in kinds and INSIDE not in os.environ:
        if can_mount():
            command = own_mounts([sys.executable, "-m", "tests.chaos", *sys.argv[1:]])
            os.execvpe(command[0], command, {**os.environ, INSIDE: "1"})
        print("left out: disk (this user may not mount a file system)", file=sys.stderr)
        kinds.remove("disk")
    place = Path(tempfile.mkdtemp(prefix="regraft-chaos-"))
    return run(place, SUBJECTS[arguments.pipeline], kinds, arguments)


def run(place: Path, subject: Subject, kinds: list[Kind], arguments: argparse.Namespace) -> int:
    """All trials; the number of those with problems."""
    began = time.monotonic()
    expected = undisturbed(Place(subject, place / "undisturbed", workers=arguments.workers))
    print(f"undisturbed: {expected.num_events} events, {time.monotonic() - began:.0f} s", flush=True)
    bad = 0
    for seed in range(arguments.first, arguments.first + arguments.seeds):
        began = time.monotonic()
        here = Place(subject, place / str(seed), retries=seed // len(kinds) % 2, workers=arguments.workers)
        report = one(here, kinds[seed % len(kinds)], seed, expected)
        print(f"seed {seed}: {told(report)} ({time.monotonic() - began:.0f} s)", flush=True)
        bad += bool(report.problems)
        if report.problems:
            print(report.told, flush=True)
        if not (report.problems and arguments.keep):
            shutil.rmtree(here.directory, ignore_errors=True)
    print(f"\n{arguments.seeds - bad} of {arguments.seeds} trials gave what an undisturbed run gives")
    if bad and arguments.keep:
        print(f"the others are in {place}")
    else:
        shutil.rmtree(place, ignore_errors=True)
    return 1 if bad else 0


def one(here: Place, kind: Kind, seed: int, expected: Undisturbed) -> Report:
    """One trial, with the retries that its stage has told beside it."""
    report = trial(here, kind, seed, expected)
    report.done += f"; {here.retries} retries"
    return report


def told(report: Report) -> str:
    """A line for people."""
    problems = "".join(f"\n  ✗ {problem}" for problem in report.problems)
    return f"{report.kind}, {report.done}, resumed {report.resumes}×: {'ok' if not problems else 'BAD'}{problems}"


if __name__ == "__main__":
    sys.exit(main())
