"""The store on S3, against a real server: results, damage, two machines, interrupted uploads, journals and logs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from pipelines.cli.history import find_run, read_run
from pipelines.cli.session import RunOptions
from pipelines.planning.plan import Step
from pipelines.running.claims import Claims
from pipelines.running.journal import JournalWriter
from pipelines.store import Store, open_store, uplink
from pipelines.store.holder import Holder
from pipelines.store.lease import Claim
from pipelines.store.transfer import Transfer
from stages.artifacts import Report
from stages.errors import UserError
from stages.stage import Output
from tests.engine.conftest import Bench
from tests.engine.conftest import bench as bench
from tests.holders import dead, far
from tests.store.s3 import bucket as bucket
from tests.store.s3 import s3_server as s3_server
from tests.store.test_store import draft, publish

KEY = "k" * 64
GATED = (
    "name: gated\nstages:\n  a: {uses: 'tests.engine.gated:Gated'}\n  b: {uses: 'tests.toy:Copy', inputs: {text: a}}\n"
)
OUTPUTS = {"text": Output(Report)}


class Machines:
    """Machines that have nothing in common but a bucket: each has a cache of its own."""

    def __init__(self, bucket: str, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.location, self.directory, self.monkeypatch = f"s3://{bucket}/team/store", directory, monkeypatch

    def store(self, machine: str) -> Store:
        self.monkeypatch.setenv("REGRAFT_CACHE", str(self.directory / machine))
        return open_store(self.location)


@pytest.fixture
def machines(bucket, tmp_path, monkeypatch) -> Machines:
    return Machines(bucket, tmp_path, monkeypatch)


def test_what_one_machine_publishes_another_finds_and_fetches(machines):
    one, two = machines.store("one"), machines.store("two")
    assert two.find("tests.toy:Copy", KEY) is None
    manifest = publish(one)
    found = two.find("tests.toy:Copy", KEY)
    assert found == manifest
    assert two.damage(found, read=True) is None
    path = two.fetch(found, "text")
    assert path.is_relative_to(machines.directory / "two")
    assert (path / "deep" / "file.json").read_text() == '"abc"'
    assert publish(two, "late") == manifest, "the first publication stays"
    assert [found for _, found in two.manifests()] == [manifest]
    assert two.remote.cat_file(two.uri(found, "text").removeprefix("s3://") + "/deep/file.json") == b'"abc"'


def test_damage_is_seen_repaired_and_a_damaged_copy_is_fetched_again(machines):
    one, two = machines.store("one"), machines.store("two")
    manifest = publish(one)
    local = two.fetch(manifest, "text") / "deep" / "file.json"
    local.write_text("broken")
    assert (two.fetch(manifest, "text") / "deep" / "file.json").read_text() == '"abc"'
    address = two.uri(manifest, "text") + "/deep/file.json"
    two.remote.pipe_file(address, b"xxxxx")
    assert "changed" in two.damage(manifest, read=True)
    with pytest.raises(UserError, match=r"is damaged: deep/file\.json changed"):
        machines.store("three").fetch(manifest, "text")
    two.remote.rm_file(address)
    assert two.damage(manifest) == "text/deep/file.json is missing"
    with pytest.raises(UserError, match="is damaged"):
        machines.store("three").fetch(manifest, "text")
    again = publish(one)
    assert again.outputs == manifest.outputs
    assert two.damage(two.find("tests.toy:Copy", KEY), read=True) is None


@pytest.mark.parametrize("failing", ["put_file", "pipe_file"])
def test_an_interrupted_upload_leaves_nothing(machines, monkeypatch, failing):
    store = machines.store("one")
    with monkeypatch.context() as patch:
        patch.setattr(store.remote, failing, lambda *_, **__: (_ for _ in ()).throw(OSError("network gone")))
        with pytest.raises(OSError, match="network gone"):
            publish(store)
    assert store.remote.find(store.base) == [], "the files that were up are taken back"
    assert machines.store("two").find("tests.toy:Copy", KEY) is None
    assert publish(store)


def test_an_answer_that_is_lost_takes_nothing_back(machines, monkeypatch):
    """The manifest is up, and all that is known here is that the connection broke."""
    store = machines.store("one")
    real = store.remote.pipe_file

    def lossy(address: str, data: bytes, **options) -> None:
        real(address, data, **options)
        raise OSError("connection reset")

    with monkeypatch.context() as patch:
        patch.setattr(store.remote, "pipe_file", lossy)
        with pytest.raises(OSError, match="connection reset"):
            publish(store)
    two = machines.store("two")
    assert two.damage(two.find("tests.toy:Copy", KEY), read=True) is None


def test_leases_on_a_bucket(machines):
    one, two = machines.store("one"), machines.store("two")
    first = one.claim(KEY, far("r1")).attempt()
    claim = Claim(two.leases, first.key, Holder.here("r2"))
    assert claim.attempt() is None
    stamp = claim._stamp
    assert one.leases.beat(first)
    assert claim.attempt() is None
    assert claim._stamp != stamp, "the heartbeat is seen"
    one.leases.release(first)
    lost = claim.attempt()
    assert lost.token == 1
    gone = one.claim("m" * 64, dead("r3")).attempt()
    taken = two.claim("m" * 64, Holder.here("r4")).attempt()
    assert taken.token == gone.token + 1
    assert not one.leases.beat(gone)
    assert not one.leases.holds(gone)
    assert two.leases.holds(taken)


def test_a_store_without_conditional_create_is_refused(machines, monkeypatch):
    store = machines.store("one")
    real = store.remote.pipe_file
    monkeypatch.setattr(store.remote, "pipe_file", lambda path, data, mode="": real(path, data))
    with pytest.raises(UserError, match="only if there is none yet"):
        store.claim(KEY, Holder.here("r")).attempt()


def test_a_waiting_stage_outlives_a_store_that_is_away_for_a_while(machines, monkeypatch):
    one, two = machines.store("one"), machines.store("two")
    first = one.claim(KEY, far("r1")).attempt()
    told: list[str] = []
    spec = SimpleNamespace(name="a", uses="tests.toy:Copy")
    claims = Claims(two, "r2", lambda _, text: told.append(text))
    assert claims.ask(Step(spec, "run", (), {}, KEY), 1) is None
    with monkeypatch.context() as patch:
        patch.setattr(two.remote, "ls", lambda *_, **__: (_ for _ in ()).throw(TimeoutError("no answer")))
        claims.due = 0
        assert claims.look() == []
    assert "cannot reach the store" in told[-1]
    one.leases.release(first)
    claims.due = 0
    [turn] = claims.look()
    assert turn.lease
    claims.close()
    assert two.remote.find(f"{two.base}/leases") == []


@pytest.mark.parametrize("call", ["ls", "cat_file"])
def test_a_stage_that_is_ready_while_the_store_is_away_waits(machines, monkeypatch, call):
    """Also when it has taken its lease already, which must not stand in its own way."""
    store, told = machines.store("one"), []
    claims = Claims(store, "r1", lambda _, text: told.append(text))
    step = Step(SimpleNamespace(name="a", uses="tests.toy:Copy"), "run", (), {}, KEY)
    with monkeypatch.context() as patch:
        patch.setattr(store.remote, call, lambda *_, **__: (_ for _ in ()).throw(TimeoutError("no answer")))
        assert claims.ask(step, 1) is None
    assert "cannot reach the store" in told[-1]
    claims.due = 0
    [turn] = claims.look()
    assert turn.lease
    claims.close()


def test_a_bucket_that_is_not_there_is_not_made(s3_server):
    with pytest.raises(UserError, match="there is no bucket 'no-such-bucket'"):
        open_store("s3://no-such-bucket/store")


def test_a_server_that_is_away_is_told(s3_server, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    s3fs = pytest.importorskip("s3fs")
    monkeypatch.setattr(s3fs.S3FileSystem, "retries", 1)
    s3fs.S3FileSystem.clear_instance_cache()
    try:
        with pytest.raises(UserError, match="cannot reach the store s3://bucket/store"):
            open_store("s3://bucket/store")
    finally:
        s3fs.S3FileSystem.clear_instance_cache()


def test_big_files_tell_how_far_they_are(machines, monkeypatch):
    monkeypatch.setattr("pipelines.store.transfer.TELLING_BYTES", 1000)
    monkeypatch.setattr("pipelines.store.transfer.TELLING_SECONDS", 0)
    store = machines.store("one")
    told: list[tuple] = []
    store.tell = lambda *how: told.append(how)
    workspace = store.workspace(KEY)
    (workspace / "text").mkdir()
    for number in range(12):
        (workspace / "text" / f"{number}.bin").write_bytes(os.urandom(100_000))
    manifest = store.publish(draft(), OUTPUTS, workspace)
    assert told[-1] == (1_200_000, 1_200_000, "bytes uploaded")
    assert [done for done, _, _ in told] == sorted(done for done, _, _ in told)
    two = machines.store("two")
    two.tell = lambda *how: told.append(how)
    two.fetch(manifest, "text")
    assert told[-1] == (1_200_000, 1_200_000, "bytes downloaded")


def test_a_failed_file_ends_the_transfer(machines, tmp_path):
    store = machines.store("one")
    with pytest.raises(FileNotFoundError):
        Transfer(store.remote, store.tell, "x", 0).download(
            [(f"{store.base}/none{n}", tmp_path / "x") for n in range(20)]
        )


def test_two_runs_on_two_machines_compute_once(machines, bench, tmp_path):
    """Two drivers with a cache of their own; the second follows the first from the bucket, waits and adopts."""
    (tmp_path / "p.yaml").write_text(GATED)
    command = [sys.executable, "-m", "pipelines", "run", "p.yaml", "--inline", "--no-track"]
    shared = {"PYTHONPATH": os.pathsep.join(sys.path), "TOY_GATE": str(tmp_path / "gate")}
    environment = {**os.environ, **shared, "REGRAFT_STORE": machines.location}

    def start(machine: str) -> subprocess.Popen[str]:
        settings = {**environment, "REGRAFT_CACHE": str(machines.directory / machine)}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        return subprocess.Popen(command, cwd=tmp_path, env=settings, text=True, **pipes)

    first = start("one")
    try:
        watcher = machines.store("watcher")
        wait_until(lambda: watcher.remote.find(f"{watcher.base}/leases"), first)
        second = start("two")
        wait_until(lambda: seen(watcher, "waits for"), first, second)
        assert read_run(watcher, find_run(watcher, None)).state == "running"
        (tmp_path / "gate").touch()
        told = [process.communicate()[0] for process in (first, second)]
    finally:
        for process in (first, second):
            process.kill()
    assert (first.returncode, second.returncode) == (0, 0), told
    assert bench.executions() == ["Gated:through", "Copy:through"]
    assert watcher.remote.find(f"{watcher.base}/leases") == []
    runs = {
        path.parent.name for path in map(Path, watcher.remote.find(f"{watcher.base}/runs")) if path.suffix == ".jsonl"
    }
    for run in runs:
        find_run(watcher, run)
        assert read_run(watcher, run).state == "done"
        assert not (watcher.run_directory(run) / "open").exists()
        watcher.pull_run(run)
    logs = [log.read_text() for run in runs if (log := watcher.run_directory(run) / "logs" / "b.log").exists()]
    assert logs == ["copying\n"], "of the run that was the first to begin b"


def test_a_run_killed_on_one_machine_goes_on_on_another(machines, bench, tmp_path):
    (tmp_path / "p.yaml").write_text(GATED)
    command = [sys.executable, "-m", "pipelines", "run", "p.yaml", "--inline", "--no-track"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "TOY_GATE": str(tmp_path / "gate")}
    one = {**environment, "REGRAFT_STORE": machines.location, "REGRAFT_CACHE": str(machines.directory / "one")}
    first = subprocess.Popen(command, cwd=tmp_path, env=one, stdout=subprocess.DEVNULL)
    watcher = machines.store("watcher")
    try:
        wait_until(lambda: watcher.remote.find(f"{watcher.base}/leases") and seen(watcher, "stage-started"), first)
    finally:
        first.send_signal(signal.SIGKILL)
        first.wait()
    run = find_run(watcher, None)
    assert "is gone" in watcher.death_of(run)
    (tmp_path / "gate").touch()
    machines.monkeypatch.setenv("TOY_GATE", str(tmp_path / "gate"))
    two = Bench(tmp_path, machines.store("two"), bench.ran_file, RunOptions("inline", track=False, view="quiet"))
    assert set(two.run(GATED).states.values()) == {"done"}
    assert bench.executions() == ["Gated:through", "Copy:through"]


def seen(store: Store, text: str) -> bool:
    store.pull_runs()
    return any(text in path.read_text() for path in (store.root / "runs").glob("*/journal.jsonl"))


def wait_until(there, *processes: subprocess.Popen) -> None:
    while not there():
        assert all(process.poll() is None for process in processes)
        time.sleep(0.1)


@pytest.mark.parametrize("ahead", [-600, 0, 600])
def test_a_clock_that_differs_from_the_bucket_s_kills_no_run(machines, monkeypatch, ahead):
    one = machines.store("one")
    for run in ("lives", "silent"):
        JournalWriter(one.run_directory(run)).write({"event": "run-started", "run": run, "pipeline": "p", "stages": []})
        (one.run_directory(run) / "open").write_text(far(run).to_json())
        assert uplink.Uplink(one.remote, f"{one.base}/runs/{run}", one.run_directory(run)).send() == ""
    real = uplink._written

    def written(about):
        return real(about) + ahead - (120 if "/silent/" in about["name"] else 0)

    monkeypatch.setattr(uplink, "_written", written)
    two = machines.store("two")
    two.pull_runs()
    assert two.death_of("lives") == ""
    assert "nothing has been heard of it for" in two.death_of("silent")
    assert [name for name in two.remote.find(two.base) if "/clock/" in name] == []


def test_what_is_local_stays_local(machines, tmp_path):
    store = machines.store("one")
    directory = store.run_directory("r")
    (directory / "logs").mkdir(parents=True)
    for name in ("journal.jsonl", "mirror.json", "mirror.lock", "logs/a.log"):
        (directory / name).write_text("x")
    link = uplink.Uplink(store.remote, f"{store.base}/runs/r", directory)
    assert link.send() == ""
    names = {address.rpartition("/runs/r/")[2] for address in store.remote.find(f"{store.base}/runs")}
    assert names == {"journal.jsonl"}, "a worker brings its log up by itself"
    link.send(everything=True)
    names = {address.rpartition("/runs/r/")[2] for address in store.remote.find(f"{store.base}/runs")}
    assert names == {"journal.jsonl", "logs/a.log"}


WIDE = """\
name: wide
stages:
  a: {uses: "tests.toy:Write", matrix: {repeat: [%s]}}
  b: {uses: "tests.toy:Join", inputs: {texts: a}}
"""


class Requests:
    """Counts what a store asks its bucket for."""

    def __init__(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        self.names: list[str] = []
        real = store.remote._call_s3

        async def counted(method: str, *args, **kwargs):
            self.names.append(method)
            return await real(method, *args, **kwargs)

        monkeypatch.setattr(store.remote, "_call_s3", counted)

    def take(self) -> dict[str, int]:
        taken, self.names = self.names, []
        return {name: taken.count(name) for name in sorted(set(taken))}


def test_a_plan_asks_once_for_each_artifact(machines, bench, monkeypatch):
    text = WIDE % ", ".join(map(str, range(1, 20)))
    bench.store = machines.store("one")
    assert bench.run(text).ok
    requests = Requests(bench.store, monkeypatch)
    assert bench.plan(text).cached
    first = requests.take()
    assert (first["list_objects_v2"], first["get_object"]) == (20, 20), "manifests are fetched the first time"
    assert bench.plan(text).cached
    assert requests.take() == {"list_objects_v2": 20}
    gone = bench.plan(text).steps["b"].manifest
    bench.store.remote.rm_file(bench.store.uri(gone, "text").removeprefix("s3://") + "/report.json")
    assert bench.reasons(text, "b") == "damaged: text/report.json is missing"
    bench.store.remote.pipe_file(f"{bench.store.base}/{bench.store._relative(gone)}/manifest.json", b"{}")
    assert bench.plan(text).count("cached") == 19, "a manifest that changed is fetched again"


def test_a_snapshot_is_forgotten_when_it_is_over(machines):
    one, two = machines.store("one"), machines.store("two")
    with one.snapshot("p", []):
        assert one.find("tests.toy:Copy", KEY) is None
        publish(two)
        assert one.find("tests.toy:Copy", KEY) is None
    assert one.find("tests.toy:Copy", KEY) is not None
