"""What the screen says while a run goes on."""

import io
import time

from rich.console import Console

from pipelines.cli import tables, view
from pipelines.spec.document import Document
from pipelines.spec.load import parse

TEXT = """\
name: x
stages:
  a: {uses: "tests.toy:Write"}
  b: {uses: "tests.toy:Copy", inputs: {text: a}}
"""
PIPELINE = parse(Document("f", TEXT))


def started(stage: str) -> dict:
    return {"event": "stage-started", "stage": stage, "reasons": ["one", "two", "three"]}


def progress(stage: str, done: float, total: float = 100, unit: str = "tokens") -> dict:
    return {"event": "progress", "stage": stage, "done": done, "total": total, "unit": unit}


def test_the_estimate_leaves_out_what_came_before_the_first_progress(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    picture = view.Picture(PIPELINE)
    picture.update(started("a"))
    now[0] = 60.0
    row = picture.update(progress("a", 10))
    assert row.left_seconds(now[0]) is None
    now[0] = 70.0
    picture.update(progress("a", 30))
    assert row.left_seconds(now[0]) == 35.0, "70 left at 2 a second"
    picture.update(progress("a", 1, 8, "windows"))
    assert row.left_seconds(now[0]) is None, "another part of the work"


def test_another_attempt_begins_at_nothing():
    picture = view.Picture(PIPELINE)
    curve = {"event": "curve", "stage": "a", "step": 1, "values": {"loss": 2.5}}
    for event in (started("a"), progress("a", 10), progress("a", 90), curve):
        picture.update(event)
    row = picture.update(started("a"))
    assert (row.done, row.total, row.curves) == (0, 0, {})
    assert row.left_seconds(time.monotonic()) is None


def test_a_total_that_nobody_knows_is_not_told():
    line, live = view.LineView(PIPELINE), view.LiveView(PIPELINE)
    for each in (line, live):
        each(started("a"))
        each(progress("a", 500, 0, "documents"))
        each(progress("a", 1000, 0, "documents"))
    row = line.picture.rows["a"]
    assert row.amount == "1,000 documents"
    assert row.left_seconds(time.monotonic()) is None
    note = str(live._cells(live.picture.rows["a"], time.monotonic())[-1])
    assert note == "1,000 documents"


def test_the_table_shows_state_progress_and_curves():
    live = view.LiveView(PIPELINE)
    curve = {"event": "curve", "stage": "a", "step": 1, "values": {"loss": 2.5}}
    for event in (started("a"), progress("a", 30), curve):
        live(event)
    console = Console(record=True, width=140, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123
    console.print(live._table())
    text = console.export_text()
    assert "30 of 100 tokens" in text
    assert "loss 2.5" in text
    assert "0 of 2 stages" in text


def test_a_stage_that_was_not_chosen_has_no_row():
    picture = view.Picture(PIPELINE)
    picture.update({"event": "run-started", "stages": [{"name": "a"}, {"name": "b", "state": "left"}]})
    assert list(picture.rows) == ["a"]


def test_a_long_note_gives_way_to_names_and_times():
    live = view.LiveView(PIPELINE)
    live(started("a"))
    live({"event": "message", "stage": "a", "text": "what it says " * 30})
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(live._table())
    text = console.export_text()
    assert "tests.toy:Write" in text
    assert "what it says" in text


def test_lines_tell_of_room_that_others_take_and_not_of_the_runs_own_queue(capfd):
    lines = view.LineView(PIPELINE)
    for stage, queues in (("a", False), ("b", True)):
        lines(started(stage))
        for event in ("waits-for-room", "has-room"):
            lines({"event": event, "stage": stage, "text": f"{event} of {stage}", "queues": queues})
    told = capfd.readouterr().out
    assert "waits-for-room of a" in told
    assert "has-room of a" in told
    assert "room of b" not in told
    assert lines.picture.rows["b"].note == "has-room of b", "the table and status have it"


def test_long_reasons_are_cut():
    assert view.short_reasons(["a", "b", "c", "d"]) == "a; b; and 2 more (regraft plan --why tells)"


def test_arms_of_a_matrix_are_told_apart_by_their_values():
    assert tables._labels(["p[model=a,n=1]", "p[model=b,n=1]"]) == ["a, 1", "b, 1"]
    assert tables._labels(["p", "q"]) == ["p", "q"]
