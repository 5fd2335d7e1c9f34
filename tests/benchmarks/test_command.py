"""One command runs every part in a process of its own; what fails is told, and stops nothing."""

import importlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from benchmarks import __main__ as command
from benchmarks import parts
from benchmarks.parts import PARTS, chosen
from benchmarks.running import Estimate, run_part, span

TINY = replace(PARTS["hybrid.rule"], quick=("--shapes", "32x1x8", "64x1x8", "--repetitions", "2"))
BROKEN = replace(PARTS["hybrid.context"], quick=("--kept", "none"))


@pytest.mark.parametrize("quick", [False, True], ids=["full", "quick"])
@pytest.mark.parametrize("part", PARTS.values(), ids=PARTS)
def test_every_command_is_one_that_its_part_takes(part, quick, monkeypatch, tmp_path):
    words = part.command(quick=quick, cache=tmp_path)
    handed = ["--json", "x.json"] if part.hands_over else []
    monkeypatch.setattr(sys, "argv", [*words[2:], *handed])
    options = vars(importlib.import_module(f"{words[2]}.__main__")._options())
    assert not part.has_peers or options["cache"] == tmp_path
    assert not part.hands_over or options["json"].name == "x.json"


def test_a_part_that_fails_is_told_and_stops_no_other(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(parts, "PARTS", {part.name: part for part in (BROKEN, TINY)})
    monkeypatch.setattr(sys, "argv", ["benchmarks", "--quick", "--only", "hybrid", "--out", str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        command.main()
    assert ended.value.code == 1
    printed, said = capsys.readouterr()
    assert printed.strip() == (tmp_path / "table.md").read_text().strip()
    row = next(line for line in printed.splitlines() if line.startswith("| hybrid.context |"))
    assert row.split(" | ")[1] == "`python -m benchmarks.hybrid context --kept none`"
    time.strptime(row.split(" | ")[2], "%Y-%m-%d %H:%M")
    assert row.split(" | ")[3].startswith("FAILED after ")
    assert "invalid int value: 'none'" in printed
    assert "[1/2] hybrid.context" in said
    assert "[2/2] hybrid.rule: done in" in said
    content = json.loads((tmp_path / "table.json").read_text())
    assert [part["state"] for part in content["parts"]] == ["failed", "done"]
    assert {"torch", "transformers", "ray", "deepspeed", "mlflow", "python"} <= content["versions"].keys()
    assert content["machine"]["memory_bytes"] > 0
    found = content["parts"][1]["findings"]
    assert [(row["what"], row["who"]) for row in found["rows"]] == [
        (shape, who) for shape in ("32x1x8", "64x1x8") for who in ("regraft", "transformers")
    ]
    assert all(len(ratio["values"]) == 2 for ratio in found["ratios"])
    assert "| hybrid.rule | 32x1x8 | s ↓ | regraft ÷ transformers |" in printed


def test_it_goes_on_with_a_table_and_measures_only_what_is_not_there(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(parts, "PARTS", {part.name: part for part in (BROKEN, TINY)})

    def table(*words):
        monkeypatch.setattr(sys, "argv", ["benchmarks", "--quick", "--out", str(tmp_path), *words])
        with pytest.raises(SystemExit) as ended:
            command.main()
        return ended.value.code, json.loads((tmp_path / "table.json").read_text())

    _, first = table("--only", "hybrid.rule")
    code, both = table("--resume")
    assert "1 of 2 parts are in" in capsys.readouterr().err
    assert code == 1, "the part that was measured now has failed"
    assert [part["name"] for part in both["parts"]] == ["hybrid.context", "hybrid.rule"]
    assert both["parts"][1] == first["parts"][0]
    table("--resume")
    assert "[1/1] hybrid.context" in capsys.readouterr().err, "what failed is tried again"
    both["machine"]["processor"] = "another"
    (tmp_path / "table.json").write_text(json.dumps(both))
    assert "processor another there" in table("--resume")[0]


def test_parts_are_chosen_by_name_and_family():
    assert [part.name for part in chosen(["hybrid", "data.memory"])] == ["hybrid.rule", "hybrid.context", "data.memory"]
    assert [part.name for part in chosen(["training"])] == ["training", "training.kd"]
    assert len(chosen([])) == len(PARTS)
    with pytest.raises(SystemExit, match=r"no benchmark 'hybird.rule'; did you mean hybrid.rule"):
        chosen(["hybird.rule"])
    with pytest.raises(SystemExit, match=r"no benchmark 'zzz'\. Known: "):
        chosen(["zzz"])


def test_the_list_has_every_part_and_its_command(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["benchmarks", "--list"])
    command.main()
    told = capsys.readouterr().out
    assert [line.split()[0] for line in told.splitlines()[::2]] == list(PARTS)
    assert "  python -m benchmarks.training --task kd\n" in told


def test_a_part_ends_with_the_process_that_runs_it(tmp_path):
    """The command is told to stop while a part is at work: its process group goes, and the table is there."""
    words = [sys.executable, "-m", "benchmarks", "--only", "recursive", "--out", str(tmp_path)]
    process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
    assert "recursive" in process.stderr.readline()
    deadline = time.monotonic() + 60
    while not (found := children(process.pid)):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 143
    assert not any(alive(pid) for pid in found)


def children(pid: int) -> list[int]:
    import psutil

    return [child.pid for child in psutil.Process(pid).children(recursive=True)]


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_what_a_part_prints_stands_for_findings_where_it_hands_none_over(tmp_path):
    part = replace(TINY, hands_over=False)
    seen = []
    outcome = run_part(part, ["python", "-c", "import time; print('| a |'); time.sleep(0.7)"], tmp_path, seen.append)
    assert outcome.state == "done"
    assert outcome.findings.more == "| a |"
    assert seen == [""]


def test_the_estimate_learns_from_what_is_done():
    estimate = Estimate([10, 30, 60])
    assert estimate.left() == 100
    assert estimate.left(running_seconds=4) == 96
    estimate.finished(20)
    assert estimate.left() == 180, "twice as slow as expected"
    assert estimate.left(running_seconds=100) == 120, "a late part takes nothing off those after it"
    estimate.finished(60)
    estimate.finished(120)
    assert estimate.left() == 0
    assert [span(seconds) for seconds in (5, 130, 7_260)] == ["5 s", "2 min", "2 h 01 min"]
