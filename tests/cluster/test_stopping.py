"""A run that is told to stop does, saves what it has, leaves nothing behind, and goes on where it was."""

import signal

import pytest

from clusters.leftovers import processes
from pipelines.spec.document import Document
from pipelines.spec.load import parse
from stages.errors import StoppedError
from tests.cluster.command import Regraft, until

SLOW = """\
name: slow
stages:
  a: {uses: "tests.toy:Write"}
  s: {uses: "tests.toy:Fail", inputs: {text: a}, with: {how: sleep, until_attempt: 2}}
  b: {uses: "tests.toy:Copy", inputs: {text: s}}
"""


def test_training_stops_at_the_next_step_and_goes_on_from_there(tiny, tmp_path, train_pipeline):
    from stages.stage import Context

    spec = parse(Document("f.yaml", train_pipeline(6))).stages["train"]
    curves: dict[str, list[tuple[int, float]]] = {"stopped": [], "whole": []}

    def context(name: str, **more) -> Context:
        def collect(event: dict) -> None:
            if event["event"] == "curve":
                curves[name].append((event["step"], event["values"]["loss"]))

        return Context(inputs={}, out=tmp_path / name, scratch=tmp_path / name / "scratch", emit=collect, **more)

    with pytest.raises(StoppedError, match="step 3 of 6"):
        spec.make().run(context("stopped", stopping=lambda: len(curves["stopped"]) == 2))
    assert [step for step, _ in curves["stopped"]] == [1, 2, 3]
    spec.make().run(context("stopped"))
    spec.make().run(context("whole"))
    assert curves["stopped"] == curves["whole"]


def test_cancel_saves_a_checkpoint_and_leaves_nothing(regraft: Regraft, train_pipeline):
    driver = regraft.start("run", regraft.write(train_pipeline(100_000, seconds=0.2)), "--no-track", "--view", "lines")
    run = regraft.await_steps(2)
    assert processes(run), "Ray's processes are recognised"
    told = regraft("cancel", "latest", "--grace", "120s")
    assert told.returncode == 0, told.stderr
    assert "nothing is left: no actor, no placement group, no process of this run" in told.stdout
    assert driver.wait(60) == 130
    assert not processes(run)
    messages = [event["text"] for event in regraft.events(run) if event["event"] == "message"]
    assert any("with a checkpoint to go on from" in text for text in messages), regraft.output
    assert regraft.states(run) == {"first": "done", "train": "cancelled", "last": "cancelled"}
    assert list(regraft.directory.glob(".regraft/scratch/*/*/checkpoints/step-*/complete.json"))
    again = regraft("cancel", run)
    assert again.returncode == 2
    assert "has ended" in again.stderr


def test_a_second_interrupt_cuts_the_grace_short(regraft: Regraft):
    driver = regraft.start("run", regraft.write(SLOW), "--no-track", "--view", "lines")
    run = regraft.await_event(event="stage-started", stage="s")
    driver.send_signal(signal.SIGINT)
    until(lambda: "asked to stop within 30 s" in regraft.output, "the first interrupt is told")
    driver.send_signal(signal.SIGINT)
    assert driver.wait(60) == 130, regraft.output
    seconds = {event["event"]: event["time"] for event in regraft.events(run)}
    assert seconds["run-stopped"] - seconds["message"] < 29, "not waited for"
    assert "nothing is left" in regraft.output
    assert not processes(run)


def test_what_a_killed_driver_left_is_ended_by_the_next_run(regraft: Regraft):
    text = "name: x\nstages:\n  a: {uses: 'tests.toy:Write'}\n  s: {uses: 'tests.cluster.stages:Spawn', needs: [a]}\n"
    driver = regraft.start("run", regraft.write(text), "--no-track", "--view", "lines")
    run = regraft.await_event(event="message", stage="s")
    driver.kill()
    driver.wait()
    until(lambda: len(processes(run)) == 1, "only what the stage started is left: the rest went with Ray")
    assert "died" in regraft("status", run).stdout
    followed = regraft("logs", "-f", run)
    assert followed.returncode == 1
    assert "ended without a word: its process" in followed.stdout
    resumed = regraft("resume", run, "--view", "lines")
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    assert f"run {run} was killed; ended what it had left: process" in resumed.stderr
    assert not processes(run)
    assert regraft.states(regraft.runs[-1]) == {"a": "cached", "s": "done"}


@pytest.mark.parametrize(("part", "in_background"), [("gcs_server", True), ("raylet", False)])
def test_when_the_local_head_dies_the_run_says_so_and_can_be_resumed(regraft: Regraft, part: str, in_background: bool):
    driver = regraft.start("run", regraft.write(SLOW), "--no-track", "--view", "lines", in_background=in_background)
    run = regraft.await_event(event="stage-started", stage="s")
    for process in processes(run):
        if process.name() == part:
            process.kill()
    assert driver.wait(120) == 1, regraft.output
    assert "has died while the stage ran" in regraft.output
    assert f"regraft resume {run}" in regraft.output
    assert regraft.states(run) == {"a": "done", "s": "failed", "b": "skipped"}
    assert not processes(run)
    assert regraft("resume", "latest", "--inline").returncode == 0
    assert regraft.states(regraft.runs[-1])["a"] == "cached"
