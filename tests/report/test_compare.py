"""`regraft compare`: the difference of runs as values, in the terminal, and for machines."""

import json
import math

import pytest

from pipelines.cli.compare import show_comparison
from pipelines.cli.difference import MISSING, RUN, compare_runs
from pipelines.cli.history import show_status
from pipelines.lineage.view import RunView
from pipelines.running.journal import JournalWriter
from pipelines.store import open_store
from stages.errors import UserError

TEXT = """\
name: small
stages:
  a: {uses: "tests.toy:Write", with: {text: abc}}
  b: {uses: "tests.toy:Copy", inputs: {text: a}}
"""
MORE = TEXT + '  extra: {uses: "tests.toy:Write"}\n'


def view(run: str, stages: dict, **fields) -> RunView:
    found = RunView()
    specs = [{"name": name, "uses": "m:A", "params": about[0]} for name, about in stages.items()]
    found.apply({"event": "run-started", "time": 0, "run": run, "pipeline": "p", "stages": specs, **fields})
    for name, (_, state, metrics) in stages.items():
        found.apply({"event": "stage-finished", "time": 1, "stage": name, "state": state, "metrics": metrics})
    return found


def rows_of(stages, name):
    return {row.name: row for row in next(stage for stage in stages if stage.name == name).rows}


def test_what_differs_and_what_does_not():
    left = view("x", {"a": ({"n": 1, "deep": {"m": [1]}}, "done", {"loss": 1.0, "nan": math.nan})}, seed=1)
    right = view(
        "y", {"a": ({"n": 2, "deep": {"m": [1]}}, "cached", {"loss": 1.0, "nan": math.nan, "new": 2.0})}, seed=1
    )
    stages = compare_runs([left, right])
    rows = rows_of(stages, "a")
    assert {name for name, row in rows.items() if row.differs} == {"n", "new"}
    assert rows["deep.m"].values == ([1], [1])
    assert rows["new"].values == (MISSING, 2.0)
    assert not rows["state"].differs, "cached is as good as done"
    assert not next(stage for stage in stages if stage.name == RUN).differs


def test_a_stage_that_a_run_lacks():
    stages = compare_runs([view("x", {"a": ({}, "done", {})}), view("y", {"b": ({}, "failed", {})})])
    assert [(stage.name, stage.present) for stage in stages[1:]] == [("a", (True, False)), ("b", (False, True))]
    assert all(stage.differs for stage in stages[1:])


def test_many_runs_are_compared_with_the_first():
    views = [view(str(n), {"a": ({"n": n}, "done", {})}) for n in (1, 1, 2)]
    row = rows_of(compare_runs(views), "a")["n"]
    assert row.differs
    assert [row.agrees(value) for value in row.values] == [True, True, False]


@pytest.fixture
def runs(bench, monkeypatch):
    """Three real runs: one, one with another text, one with another stage."""
    monkeypatch.setenv("COLUMNS", "120")
    return [bench.run(TEXT).run, bench.run(TEXT, "a.text=abcdef").run, bench.run(MORE).run]


def test_the_table_marks_differences_and_hides_what_is_equal(bench, runs, capsys):
    show_comparison(bench.store, runs[:2], everything=False, as_json=False)
    told = capsys.readouterr().out
    line = next(line.split() for line in told.splitlines() if "length" in line)
    assert line == ["≠", "length", "3", "6", "×", "2"]
    assert all(run in told for run in runs[:2])
    assert "scale" not in told
    assert "--all shows what is equal" in told
    show_comparison(bench.store, runs[:2], everything=True, as_json=False)
    told = capsys.readouterr().out
    assert "scale" in told
    assert "--all" not in told


def test_names_may_be_beginnings_or_latest(bench, runs, capsys):
    show_comparison(bench.store, [runs[0], runs[1], "latest"], everything=False, as_json=False)
    told = capsys.readouterr().out
    assert runs[2] in told
    assert told.count("no such stage") == 2
    assert "1 stages are not in every run" in told


def test_json_has_every_row_and_no_value_where_there_is_none(bench, runs, capsys):
    show_comparison(bench.store, runs, everything=False, as_json=True)
    told = json.loads(capsys.readouterr().out)
    assert [run["run"] for run in told["runs"]] == runs
    stages = {stage["stage"]: stage for stage in told["stages"]}
    text = next(row for row in stages["a"]["rows"] if row["name"] == "text")
    assert text == {
        "kind": "parameter",
        "name": "text",
        "differs": True,
        "values": dict(zip(runs, ("abc", "abcdef", "abc"), strict=True)),
    }
    assert stages["extra"]["missing_in"] == runs[:2]
    assert set(stages["extra"]["rows"][0]["values"]) == {runs[2]}
    assert not stages["b"]["rows"][0]["differs"]


def test_json_is_json_though_metrics_are_not_numbers(tmp_path, capsys):
    for run, loss in (("x", math.nan), ("y", math.inf)):
        writer = JournalWriter(tmp_path / "runs" / run)
        writer.write({"event": "run-started", "run": run, "pipeline": "p", "stages": [{"name": "a", "uses": "m:A"}]})
        writer.write({"event": "stage-finished", "stage": "a", "state": "done", "metrics": {"loss": loss}})
        writer.close()
    show_comparison(open_store(str(tmp_path)), ["x", "y"], everything=False, as_json=True)
    told = json.loads(capsys.readouterr().out, parse_constant=lambda text: pytest.fail(text))
    assert told["stages"][1]["rows"][-1]["values"] == {"x": "nan", "y": "inf"}
    show_status(open_store(str(tmp_path)), "x", as_json=True)
    told = json.loads(capsys.readouterr().out, parse_constant=lambda text: pytest.fail(text))
    assert told["stages"]["a"]["metrics"] == {"loss": "nan"}
    show_comparison(open_store(str(tmp_path)), ["x", "y"], everything=False, as_json=False)
    assert "inf" in capsys.readouterr().out


def test_markup_in_values_is_text(bench, capsys):
    runs = [bench.run(TEXT, f"a.text='{text}'").run for text in ("[red]x[/red]", "[/]")]
    show_comparison(bench.store, runs, everything=False, as_json=False)
    assert "[red]x[/red]" in capsys.readouterr().out


def test_bad_names_are_told(bench, runs):
    with pytest.raises(UserError, match="needs two different runs"):
        show_comparison(bench.store, ["latest", runs[2]], everything=False, as_json=False)
    with pytest.raises(UserError, match="no run 'nothing'"):
        show_comparison(bench.store, ["nothing", "latest"], everything=False, as_json=False)
    with pytest.raises(UserError, match="3 runs begin with"):
        show_comparison(bench.store, ["2", "latest"], everything=False, as_json=False)
