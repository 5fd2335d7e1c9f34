"""What each tool does again after something changed: the stages that ran, and whether the result is right."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from benchmarks.orchestrator.measure import LONGEST_SECONDS, run, start
from benchmarks.orchestrator.small import Small
from benchmarks.orchestrator.tools import QUIET, Tool

Disturb = Callable[[Small], None]
PLAIN: Final = "first\ns1\ns2\n"
LOUD: Final = "FIRST\nS1\ns2\n"


def nothing(_small: Small) -> None:
    """Nothing."""


def touch(small: Small) -> None:
    """The input's time stamp changes, its content does not."""
    later = time.time() + 10
    os.utime(small.directory / "input.txt", (later, later))


def unused_line(small: Small) -> None:
    """The input changes where no stage looks: what `s0` makes stays the same."""
    small.set("input.txt", "first\nanother\n")


def back_again(small: Small) -> None:
    """The input changes, everything runs, and the input changes back."""
    small.set("input.txt", "other\n")
    update(small)
    small.set("input.txt", "first\nsecond\n")


def helper(small: Small) -> None:
    """The helper that the stages use does something else; nobody told the tool of it."""
    if small.tool.name == "regraft":
        small.edit("bench_helper.py", "str(text)", "str(text).upper()")
    else:
        small.edit("helper.sh", "cat $1", "cat $1 | tr a-z A-Z")


def comment(small: Small) -> None:
    """A comment is added to the code of `s1`."""
    if small.tool.name == "regraft":
        small.edit("bench_stages.py", "class S1(Hand):\n", "class S1(Hand):  # the second\n")
    else:
        small.edit("s1.sh", ". ./helper.sh\n", "# the second\n. ./helper.sh\n")


def placement(small: Small) -> None:
    """`s1` asks for another number of cores."""
    if small.tool.name == "regraft":
        small.edit("p.yaml", "cpus: 1", "cpus: 2")
    elif small.tool.name == "snakemake":
        small.edit("Snakefile", "rule s1:\n", "rule s1:\n    threads: 2\n")
    else:
        raise NotApplicableError


def killed(small: Small) -> None:
    """Everything is new, and the tool and its stages are killed while `s1` has written half of its output."""
    small.write()
    small.set("slow", "")
    process = begin(small)
    _wait_for(small.directory / "halfway")
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    (small.directory / "slow").unlink()


class NotApplicableError(Exception):
    """The tool has no such notion."""


ROWS: Final[tuple[tuple[str, Disturb, str, str], ...]] = (
    ("nothing changed", nothing, "", PLAIN),
    ("time stamp of the input", touch, "", PLAIN),
    ("input changed, output of s0 the same", unused_line, "s0", PLAIN),
    ("input A → B → A", back_again, "", PLAIN),
    ("white space in the command", Small.respace, "", PLAIN),
    ("comment in the code of s1", comment, "", PLAIN),
    ("helper edited", helper, "s0 s1 s2", LOUD),
    ("output of s1 corrupted", lambda small: small.corrupt("s1"), "s1", PLAIN),
    ("output of s2 corrupted", lambda small: small.corrupt("s2"), "s2", PLAIN),
    ("output of s1 deleted, caches too", lambda small: small.delete("s1"), "s1", PLAIN),
    ("placement of s1", placement, "", PLAIN),
    ("`kill -9` during s1", killed, "s1 s2", PLAIN),
)
"""What is done; which stages a tool should run then at most; what the last stage must hold in the end."""


def behaviour_table(tools: Sequence[Tool], place: Path) -> str:
    """One row a disturbance, one column a tool. `**…**` marks what is wrong: a needless run, or a wrong result."""
    lines = [
        f"| then run again | needed | {' | '.join(tool.name for tool in tools)} |",
        f"|{'---|' * (len(tools) + 2)}",
    ]
    for what, disturb, needed, text in ROWS:
        cells = [cell(Small(tool, place / f"small-{tool.name}"), disturb, needed, text) for tool in tools]
        lines.append(f"| {what} | {needed or '–'} | {' | '.join(cells)} |")
    cells = [concurrent(Small(tool, place / f"small-{tool.name}")) for tool in tools]
    lines.append(f"| two runs at once | s0 s1 s2 | {' | '.join(cells)} |")
    return "\n".join(lines)


def cell(small: Small, disturb: Disturb, needed: str, text: str) -> str:
    """The stages that ran after `disturb`, and what is wrong about it."""
    small.write()
    update(small)
    try:
        disturb(small)
    except NotApplicableError:
        return "n/a"
    ran, status = update(small)
    wrong = [f"ended with {status}"] if status else []
    if set(ran) - set(needed.split()):
        wrong.append("needless")
    if not status and small.text("s2") != text:
        wrong.append("wrong result")
    return _cell(ran, wrong)


def concurrent(small: Small) -> str:
    """What two runs that start together execute between them."""
    small.write()
    small.set("slow", "")
    processes = [begin(small), begin(small)]
    failed = sum(process.wait(LONGEST_SECONDS) != 0 for process in processes)
    ran = executed(small)
    wrong = [f"{failed} of 2 failed"] if failed else []
    if len(ran) > len(set(ran)):
        wrong.append("work done twice")
    if failed < 2 and small.text("s2") != PLAIN:
        wrong.append("wrong result")
    return _cell(ran, wrong)


def update(small: Small) -> tuple[list[str], int]:
    """Run the tool; the stages that were executed, and its exit status."""
    (small.directory / "executed").unlink(missing_ok=True)
    status = run(small.tool.run_command, small.directory, QUIET, may_fail=True).status
    return executed(small), status


def executed(small: Small) -> list[str]:
    """The stages that were executed since `executed` was removed last."""
    ran = small.directory / "executed"
    return ran.read_text().split() if ran.exists() else []


def begin(small: Small) -> subprocess.Popen:
    """Start the tool and let it run."""
    with (small.directory / "command.log").open("ab") as log:
        return start(small.tool.run_command, small.directory, QUIET, log)


def _wait_for(file: Path) -> None:
    deadline = time.monotonic() + 120
    while not file.exists():
        assert time.monotonic() < deadline, f"{file} never came"
        time.sleep(0.02)


def _cell(ran: list[str], wrong: list[str]) -> str:
    told = " ".join(ran) or "–"
    return f"**{told} ({', '.join(wrong)})**" if wrong else told
