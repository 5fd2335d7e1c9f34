"""The mirror as a process, `resync`, and the server."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from pipelines.lineage.address import is_server, tracking_uri
from pipelines.lineage.cursor import Cursor, identity, locked
from pipelines.lineage.feed import Mirror
from pipelines.lineage.server import resync, serve
from pipelines.lineage.tracker import Tracker
from pipelines.running.journal import run_directory
from stages.errors import UserError
from tests.lineage.journals import Writer, stage

STAGES = [stage("one", "source.model", path="x")]


@pytest.fixture
def own_store(store: Path, tmp_path: Path) -> Path:
    """A store of its own, with a copy of the migrated database."""
    shutil.copy(store / "mlflow.db", tmp_path / "mlflow.db")
    return tmp_path


@pytest.fixture
def dead_server(monkeypatch: pytest.MonkeyPatch) -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        uri = f"http://joe:sesame@127.0.0.1:{probe.getsockname()[1]}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    return uri


def write(writer: Writer) -> None:
    writer.start(STAGES, "process")
    writer.begin("one")
    writer.finish("one", makes={"model": "model"})
    writer.end()


def test_the_driver_feeds_a_process(own_store: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    mirror = Mirror(own_store, "live", "regraft resync")
    writer = Writer(own_store, "live")
    writer.start(STAGES, "process")
    mirror.wake()
    writer.begin("one")
    started = time.monotonic()
    for _ in range(20_000):
        mirror.wake()  # a bell may be rung without need, and many of them fill the pipe
    assert time.monotonic() - started < 2
    writer.curve("one", 0, loss=1.0)
    writer.finish("one", makes={"model": "model"})
    writer.end()
    mirror.wake()
    assert mirror.finish(60) is None
    cursor = Cursor.load(run_directory(own_store, "live"))
    tracker = Tracker(own_store)
    assert cursor.lines == 5
    assert tracker.client.get_run(cursor.parent).info.status == "FINISHED"
    assert tracker.client.get_run(cursor.children["one#1"]).data.metrics["loss"] == 1.0


def test_a_dead_server_is_told_in_one_line_and_resync_completes(
    own_store: Path, dead_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(Writer(own_store, "late"))
    mirror = Mirror(own_store, "late", "regraft resync")
    mirror.wake()
    problem = mirror.finish(60)
    assert problem is not None
    assert "MLflow at http://127.0.0.1:" in problem
    assert "regraft resync" in problem
    assert "\n" not in problem
    assert "sesame" not in problem
    with pytest.raises(UserError, match="cannot be reached"):
        resync(own_store)
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert [(outcome.run, outcome.events, outcome.problem) for outcome in resync(own_store)] == [("late", 4, "")]
    assert [outcome.events for outcome in resync(own_store)] == [0]


def test_a_process_that_cannot_start_is_told(own_store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", str(own_store / "no-python"))
    mirror = Mirror(own_store, "none", "regraft resync")
    mirror.wake()
    assert "did not start" in str(mirror.finish(1))


def test_resync_tells_of_damage_and_leaves_live_runs_alone(own_store: Path) -> None:
    write(Writer(own_store, "fine", at=1.0))
    Writer(own_store, "damaged", at=2.0).path.write_text('{"event": 5\n{"event"}\n')
    write(Writer(own_store, "live", at=3.0))
    with locked(run_directory(own_store, "live") / "mirror.lock"):
        outcomes = {outcome.run: outcome for outcome in resync(own_store)}
    assert outcomes["fine"].events == 4
    assert "journal.jsonl:1" in outcomes["damaged"].problem
    assert outcomes["live"].events == 0
    assert not (run_directory(own_store, "live") / "mirror.json").exists()


def test_a_database_that_was_deleted_is_filled_again(own_store: Path) -> None:
    writer = Writer(own_store, "kept")
    write(writer)
    uid = identity(json.loads(writer.path.read_text().split("\n")[0]))
    Cursor(uid=uid, tracking=tracking_uri(own_store), lines=4, parent="gone").save(run_directory(own_store, "kept"))
    assert [outcome.events for outcome in resync(own_store)] == [4]
    assert Cursor.load(run_directory(own_store, "kept")).parent != "gone"


def test_one_resync_links_a_cached_stage_to_a_run_of_the_same_resync(own_store: Path) -> None:
    write(Writer(own_store, "first", at=1.0))
    second = Writer(own_store, "second", at=2.0)
    second.start(STAGES, "process")
    second.finish("one", "cached", makes={"model": "model"}, producer="first")
    resync(own_store)
    first, cached = (Cursor.load(run_directory(own_store, run)) for run in ("first", "second"))
    tags = Tracker(own_store).client.get_run(cached.children["one#1"]).data.tags
    assert tags["regraft.producer_mlflow_run"] == first.children["one#1"]
    assert cached.models == first.models


def test_a_port_in_use_is_named(own_store: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=str(port)) as problem:
            serve(own_store, port=port)
    assert "--port" in problem.value.fix


def test_the_server_shows_the_runs_and_stops_with_the_command(own_store: Path) -> None:
    write(Writer(own_store, "shown"))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    program = "from pathlib import Path; from pipelines.lineage.server import serve; "
    program += f"serve(Path({str(own_store)!r}), {port})"
    root = str(Path(__file__).parents[2])
    command = [sys.executable, "-c", program]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": root},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # shells ignore it in the background
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    cursor = Cursor.load(run_directory(own_store, "shown"))
    assert f"http://127.0.0.1:{port}/#/experiments/{cursor.experiment}/runs?workflowType=machine_learning" in line
    picture = f"http://127.0.0.1:{port}/get-artifact?path=dag.svg&run_uuid={cursor.parent}&v=4"
    with urllib.request.urlopen(picture, timeout=20) as answer:
        assert answer.headers["Content-Type"].startswith("image/svg+xml")
    process.send_signal(signal.SIGINT)
    assert process.wait(120) == 0
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=5)


def test_what_the_driver_holds_imports_no_mlflow() -> None:
    light = ", ".join(f"pipelines.lineage.{name}" for name in ("drawing", "feed", "server", "view"))
    program = f"import {light}, sys, json; print(json.dumps(sorted(sys.modules)))"
    root = str(Path(__file__).parents[2])
    found = subprocess.check_output([sys.executable, "-c", program], env={**os.environ, "PYTHONPATH": root})
    assert not {"mlflow", "torch", "ray", "transformers"} & set(json.loads(found))


@pytest.mark.parametrize(("uri", "server"), [("databricks", True), ("https://x", True), ("sqlite:///x", False)])
def test_what_brings_its_own_place_for_artifacts(uri: str, server: bool) -> None:
    assert is_server(uri) == server
