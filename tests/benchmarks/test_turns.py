"""Contenders take turns, so that what drifts on a machine reaches all of them alike."""

from __future__ import annotations

import subprocess
import sys

from benchmarks.turns import in_turns, take_turns


def test_each_round_goes_the_other_way():
    assert list(in_turns(("a", "b"), 3)) == [(1, "a"), (1, "b"), (2, "b"), (2, "a"), (3, "a"), (3, "b")]


def test_the_first_turn_of_each_warms_up_and_is_not_counted():
    taken: list[str] = []
    found = take_turns({name: lambda name=name: taken.append(name) for name in "ab"}, 2)
    assert taken == ["a", "b", "b", "a", "a", "b"]
    assert {name: len(turns) for name, turns in found.items()} == {"a": 2, "b": 2}


def test_who_times_processes_imports_no_torch():
    code = "import sys, benchmarks.orchestrator.measure; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
