"""A timeout ends the work with everything it started, and retries wait as told."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from pipelines.cli.session import RunOptions
from pipelines.running.journal import Journal

SPAWN = "name: x\nstages:\n  a: {uses: 'tests.engine.gated:Spawn', timeout: SECONDS}\n"


@pytest.mark.parametrize("executor", ["inline", "ray"])
def test_children_end_with_the_stage(bench, tmp_path, monkeypatch, executor):
    monkeypatch.setenv("TOY_GATE", str(tmp_path / "pids"))
    bench.options = RunOptions(executor=executor, track=False, view="quiet")
    for seconds in (3, 10, 40, 160):  # the stage has begun before its time is over, on a busy machine too
        result = bench.run(SPAWN.replace("SECONDS", f"{seconds}s"))
        assert f"stopped after its timeout of {seconds} s" in result.failures["a"].message
        if Path("pids").exists():
            break
    pids = [int(text) for text in Path("pids").read_text().split()]
    deadline = time.monotonic() + 30
    while any(map(lives, pids)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not [pid for pid in pids if lives(pid)]
    assert "3217" not in [part for process in psutil.process_iter() for part in command(process)], "a grandchild"
    assert list((bench.store.root / "work").iterdir()) == []


def lives(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def test_children_that_were_there_before_stay(bench, tmp_path, monkeypatch):
    with subprocess.Popen(["sleep", "100"]) as before:
        bench.run("name: x\nstages:\n  a: {uses: 'tests.toy:Fail', with: {how: fault}}\n")
        assert before.poll() is None
        before.kill()


def test_pauses_between_attempts_grow_and_are_always_the_same(bench, monkeypatch):
    slept: list[float] = []
    clock = [0.0]

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        clock[0] += seconds

    monkeypatch.setattr("pipelines.running.attempts.time", SimpleNamespace(sleep=sleep, monotonic=lambda: clock[0]))
    result = bench.run("name: x\nstages:\n  a: {uses: 'tests.toy:Fail', with: {how: fault}, retries: 7}\n")
    assert result.states == {"a": "failed"}
    assert slept == [1, 2, 4, 8, 16, 30, 30]
    events = Journal(bench.store.run_directory(result.run) / "journal.jsonl").read()
    assert "attempt 7 failed: StageError: something broke; trying again in 30 s" in [
        event["text"] for event in events if event["event"] == "message"
    ]
    assert os.listdir(bench.store.root / "leases") == []  # noqa: PTH208


def test_the_log_of_a_stage_that_ran_out_of_time_is_shown(bench, monkeypatch):
    from tests import toy

    def talk(self, context) -> None:
        print("step 17 of 99", flush=True)
        time.sleep(60)

    monkeypatch.setattr(toy.Write, "run", talk)
    failure = bench.run("name: x\nstages:\n  a: {uses: 'tests.toy:Write', timeout: 1s}\n").failures["a"]
    assert failure.message == "stopped after its timeout of 1 s"
    assert failure.tail == "step 17 of 99"
