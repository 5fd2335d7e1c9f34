"""The benchmark of the engine works, and tells a right cell of its behaviour table from a wrong one."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from benchmarks.findings import Findings
from benchmarks.orchestrator import behaviour
from benchmarks.orchestrator.__main__ import main
from benchmarks.orchestrator.cost import RAN
from benchmarks.orchestrator.small import Small
from benchmarks.orchestrator.tools import Make, Regraft


def test_quick_mode_with_regraft_alone(monkeypatch, capsys, tmp_path):
    handed = tmp_path / "found.json"
    words = ["orchestrator", "--quick", "--only", "regraft", "--parts", "cost,plan", "--json", str(handed)]
    monkeypatch.setattr(sys, "argv", words)
    main()
    assert "| chain of 10: cold | regraft |" in capsys.readouterr().out
    rows = Findings.from_dict(json.loads(handed.read_text())).rows
    ran = {row.what: row.figures[RAN] for row in rows if RAN in row.figures}
    assert ran["chain of 10: cold"] == (10,)
    assert ran["chain of 10: nothing to do"] == (0,)
    assert ran["chain of 10: one parameter"] == (1,)
    assert ran["1 diamonds of 12: one parameter"] == (1,)
    assert any(row.what.startswith("plan of") for row in rows)


def test_a_tool_that_is_not_there_is_told(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["orchestrator", "--only", "regraft,bazel"])
    with pytest.raises(SystemExit):
        main()
    assert "unknown: bazel; known: regraft, make" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("disturb", "needed", "text", "found"),
    [
        (behaviour.nothing, "", behaviour.PLAIN, "–"),
        (behaviour.helper, "s0 s1 s2", behaviour.LOUD, "s0 s1 s2"),
        (behaviour.nothing, "", "other\n", "**– (wrong result)**"),
        (behaviour.helper, "s0", behaviour.LOUD, "**s0 s1 s2 (needless)**"),
    ],
    ids=["nothing", "helper", "wrong", "needless"],
)
def test_cells_of_the_behaviour_table(disturb, needed, text, found, tmp_path):
    assert behaviour.cell(Small(Regraft(Path()), tmp_path / "small"), disturb, needed, text) == found


def test_what_make_gets_wrong_is_told(tmp_path):
    small = Small(Make(Path()), tmp_path / "small")
    assert behaviour.cell(small, behaviour.killed, "s1 s2", behaviour.PLAIN) == "**s2 (wrong result)**"
