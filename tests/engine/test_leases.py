"""Two runs on one store: nothing is computed twice, whoever dies is replaced, and nobody publishes after that."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from pipelines.running.journal import Journal, JournalWriter, list_runs
from pipelines.store import Store, holder, lease, open_store
from pipelines.store.disk_lease import DiskLeases
from pipelines.store.holder import Holder
from pipelines.store.keeper import Keeper
from pipelines.store.lease import Claim, Lease, LeaseLostError, Leases
from pipelines.store.remote_lease import RemoteLeases
from stages.artifacts import Report
from stages.stage import Output
from tests.holders import dead, far, mark
from tests.store.test_store import draft

KEY = "k" * 64
GATED = (
    "name: gated\nstages:\n  a: {uses: 'tests.engine.gated:Gated'}\n  b: {uses: 'tests.toy:Copy', inputs: {text: a}}\n"
)


@pytest.fixture(params=["disk", "memory"])
def leases(request, tmp_path) -> Leases:
    if request.param == "disk":
        return Leases(DiskLeases(tmp_path / "leases"))
    import fsspec

    return Leases(RemoteLeases(fsspec.filesystem("memory"), f"/{tmp_path.name}/leases"))


def take(leases: Leases, holder: Holder) -> Lease:
    taken = Claim(leases, "key", holder).attempt()
    assert taken
    return taken


def test_one_of_many_gets_it(leases):
    taken: list[Lease | None] = []
    threads = [
        threading.Thread(target=lambda: taken.append(Claim(leases, "key", Holder.here("r")).attempt()))
        for _ in range(16)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len([found for found in taken if found]) == 1


def test_who_has_it_is_told_and_released_means_free(leases):
    first = take(leases, replace(Holder.here("r1", "train"), host="box"))
    claim = Claim(leases, "key", Holder.here("r2"))
    assert claim.attempt() is None
    assert str(claim.other.holder).startswith(f"stage 'train' of run r1 (process {os.getpid()} on box, since ")
    leases.release(first)
    assert leases.newest("key") is None
    assert claim.attempt()
    assert "ended without this result" in claim.taken_over


def test_a_late_heartbeat_leaves_another_run_s_lease_alone(leases):
    late = take(leases, Holder.here("r1"))
    leases.release(late)
    other = take(leases, Holder.here("r2"))
    assert other.token == late.token, "a released key begins anew"
    before = leases.newest("key")
    assert not leases.beat(late)
    assert leases.newest("key") == before
    assert leases.beat(other)


def test_a_mark_or_a_lease_that_cannot_be_beaten_keeps_no_other_from_it(leases, monkeypatch):
    def away() -> None:
        raise OSError("no answer")

    keeper = Keeper(leases, away)
    for key in ("key", "other"):
        keeper.keep(Claim(leases, key, Holder.here("r")).attempt())
    real = leases.files.tokens
    monkeypatch.setattr(leases.files, "tokens", lambda key: away() if key == "key" else real(key))
    before = leases.newest("other")
    time.sleep(0.01)
    keeper.beat()
    assert leases.newest("other")[1] != before[1]
    monkeypatch.undo()
    keeper.close()


def test_a_process_that_is_gone_is_replaced_at_once(leases):
    first = take(leases, dead("r1"))
    claim = Claim(leases, "key", Holder.here("r2"))
    second = claim.attempt()
    assert second.token == first.token + 1
    assert "took over from run r1" in claim.taken_over
    assert "its process is gone" in claim.taken_over
    assert not leases.holds(first)
    assert leases.holds(second)
    assert not leases.beat(first), "it learns so from its heartbeat too"
    with pytest.raises(LeaseLostError, match=r"run r2 .* has taken over"):
        leases.check(first)
    leases.release(first)
    assert leases.holds(second), "what is lost cannot be released"


def test_a_number_that_another_process_has_now_is_gone(leases):
    take(leases, replace(Holder.here("r1"), born="1"))
    assert Claim(leases, "key", Holder.here("r2")).attempt()


def test_far_away_only_silence_counts_by_the_waiter_s_own_clock(leases, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(lease.time, "monotonic", lambda: now[0])
    first = take(leases, far("r1"))
    claim = Claim(leases, "key", Holder.here("r2"))
    for _ in range(5):
        assert claim.attempt() is None
        now[0] += holder.EXPIRY_SECONDS - 1
        time.sleep(0.002)
        assert leases.beat(first)
    assert claim.attempt() is None
    now[0] += holder.EXPIRY_SECONDS + 1
    assert claim.attempt().token == 2
    assert "nothing has been heard of it for 1m 01s" in claim.taken_over


def test_an_unreadable_lease_ends_like_a_silent_one(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(lease.time, "monotonic", lambda: now[0])
    (tmp_path / "leases/key").mkdir(parents=True)
    (tmp_path / "leases/key/7").write_bytes(b"")
    claim = Claim(Leases(DiskLeases(tmp_path / "leases")), "key", Holder.here("r2"))
    assert claim.attempt() is None
    now[0] = 100.0
    assert claim.attempt().token == 8


def write(store: Store, text: str) -> Path:
    workspace = store.workspace(KEY)
    (workspace / "text").mkdir()
    (workspace / "text" / "report.json").write_text(text)
    return workspace


@pytest.mark.parametrize("winner_published", [True, False])
def test_a_fenced_out_attempt_publishes_nothing(tmp_path, winner_published):
    store = Store(tmp_path)
    old = store.claim(KEY, dead("r1")).attempt()
    late = write(store, "late")
    new = store.claim(KEY, Holder.here("r2")).attempt()
    outputs = {"text": Output(Report)}
    if winner_published:
        first = store.publish(draft(), outputs, write(store, "first"), new)
        assert store.publish(draft(), outputs, late, old) == first
    else:
        with pytest.raises(LeaseLostError, match="is discarded"):
            store.publish(draft(), outputs, late, old)
        assert store.find("tests.toy:Copy", KEY) is None
        assert store.publish(draft(), outputs, write(store, "first"), new)


def test_scratch_belongs_to_one_attempt_at_a_time(tmp_path):
    store = Store(tmp_path)
    old = store.scratch(KEY, "one")
    (old / "checkpoint").write_text("step 5")
    new = store.scratch(KEY, "two")
    assert (new / "checkpoint").read_text() == "step 5"
    with pytest.raises(FileNotFoundError):
        (old / "checkpoint").write_text("step 6")
    old.mkdir()
    (old / "late").touch()
    os.utime(old, (0, 0))
    assert sorted(path.name for path in store.scratch(KEY, "three").iterdir()) == ["checkpoint"]
    assert store.scratch("l" * 64, "one") != new, "another identity never sees it"


class Two:
    """Runs in processes of their own, on one store; the stage `a` goes on once the file `gate` is there."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        (directory / "p.yaml").write_text(GATED)
        self.command = [
            sys.executable,
            "-m",
            "pipelines",
            "run",
            "p.yaml",
            "--inline",
            "--no-track",
            "--store",
            "store",
        ]
        self.environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "TOY_GATE": str(directory / "gate")}
        self.started: list[subprocess.Popen[str]] = []

    def start(self, *options: str) -> subprocess.Popen[str]:
        command = [*self.command, *options]
        pipe = subprocess.PIPE
        process = subprocess.Popen(
            command, cwd=self.directory, env=self.environment, stdout=pipe, stderr=subprocess.STDOUT, text=True
        )
        self.started.append(process)
        return process

    def wait_for(self, text: str, num_runs: int = 1) -> None:
        """Until the journals of `num_runs` runs say `text`."""
        journals = self.directory / "store" / "runs"
        while sum(text in path.read_text() for path in journals.glob("*/journal.jsonl")) < num_runs:
            assert all(process.poll() is None for process in self.started)
            time.sleep(0.05)

    def open_gate(self) -> None:
        (self.directory / "gate").touch()


@pytest.fixture
def two(bench, tmp_path):
    two = Two(tmp_path)
    yield two
    for process in two.started:
        process.kill()
        process.wait()


def test_the_second_run_waits_and_adopts(bench, two):
    first = two.start()
    two.wait_for("stage-started")
    second = two.start()
    two.wait_for("waits for")
    two.open_gate()
    told, told_first = second.communicate()[0], first.communicate()[0]
    assert (first.returncode, second.returncode) == (0, 0), told + told_first
    assert f"waits for stage 'a' of run {list_runs(bench.store.root)[0]} (process {first.pid} on " in told
    assert bench.executions() == ["Gated:through", "Copy:through"]
    events = Journal(bench.store.run_directory(list_runs(bench.store.root)[1]) / "journal.jsonl").read()
    ends = {event["stage"]: event for event in events if event["event"] == "stage-finished"}
    assert ends["a"]["state"] == "cached"
    assert "made meanwhile by run" in ends["a"]["reason"]
    assert list((bench.store.root / "leases").iterdir()) == []


def test_the_second_run_takes_over_from_one_that_is_killed(bench, two):
    first = two.start()
    two.wait_for("stage-started")
    second = two.start()
    two.wait_for("waits for")
    first.send_signal(signal.SIGKILL)
    first.communicate()
    two.started.remove(first)
    two.wait_for("took over from stage 'a' of run")
    two.open_gate()
    told = second.communicate()[0]
    assert second.returncode == 0, told
    assert "its process is gone" in told
    assert bench.executions() == ["Gated:through", "Copy:through"]


def test_a_frozen_run_that_wakes_up_adopts_what_was_made_meanwhile(bench, two):
    """The driver sleeps for long (here: its lease is given away by hand); its late result is not published."""
    first = two.start()
    two.wait_for("stage-started")
    while not list((bench.store.root / "work").glob("*/*")):
        time.sleep(0.02)
    [file] = (bench.store.root / "leases").glob("*/1")
    other = bench.store.leases.take(file.parent.name, Holder.here("r2"), after=1)
    two.open_gate()
    two.wait_for("waits for run r2")
    bench.store.leases.release(other)
    told = first.communicate()[0]
    assert first.returncode == 0, told
    assert "what it made is discarded" in told
    assert bench.executions() == ["Gated:through", "Gated:through", "Copy:through"]


def test_equal_stages_of_one_run_are_computed_once(bench):
    text = "name: twins\nstages:\n  a: {uses: 'tests.toy:Write'}\n  b: {uses: 'tests.toy:Write'}\n"
    result = bench.run(text)
    assert sorted(result.states.values()) == ["cached", "done"]
    assert bench.executions() == ["Write:hello"]


def test_a_cached_run_takes_no_lease(bench, monkeypatch):
    text = "name: x\nstages:\n  a: {uses: 'tests.toy:Write'}\n"
    bench.run(text)
    monkeypatch.setattr(Leases, "newest", lambda *_: pytest.fail("a lease was looked at"))
    assert set(bench.run(text).states.values()) == {"cached"}


@pytest.mark.parametrize("place", ["disk", "memory"])
def test_a_run_that_died_after_publishing_leaves_no_lease_to_the_next(bench, monkeypatch, tmp_path, place):
    """Between the publication and the journal's entry; the lease of what is not made yet tells whom one takes over."""
    monkeypatch.setenv("REGRAFT_CACHE", str(tmp_path / "cache"))
    store = bench.store = open_store(f"memory://{tmp_path.name}/store") if place == "memory" else bench.store
    text = "name: x\nstages:\n  a: {uses: 'tests.toy:Write'}\n"
    made = bench.run(text).manifests["a"].key
    for run, key in ((dead("r1"), made), (dead("r1"), KEY), (dead("r2"), "m" * 64), (Holder.here("alive"), "n" * 64)):
        assert store.claim(key, run).attempt()
    gone = JournalWriter(store.run_directory("r1"))
    gone.write({"event": "run-started", "run": "r1"})
    mark(store, dead("r1"))
    assert set(bench.run(text).states.values()) == {"cached"}
    assert sorted(store.leases.files.list_keys()) == [key[:24] for key in (KEY, "m" * 64, "n" * 64)]
    claim = store.claim(KEY, Holder.here("r3"))
    assert claim.attempt()
    assert "took over from run r1" in claim.taken_over
    gone.close()


def test_only_the_work_of_dead_runs_is_cleared(tmp_path):
    store = Store(tmp_path)
    for holding in (Holder.here("alive"), dead("dead"), far("far")):
        mark(store, holding)
        store.workspace(KEY, holding.run)
    store.workspace(KEY, "unknown")
    store.clear_work()
    assert sorted(path.name for path in (tmp_path / "work").iterdir()) == ["alive", "far"]
    assert store.death_of("alive") == store.death_of("far") == ""
    assert "is gone" in store.death_of("dead")
    long_ago = time.time() - 1000
    os.utime(store.run_directory("far") / "open", (long_ago, long_ago))
    assert "nothing has been heard of it for 16m" in store.death_of("far")
    assert store.death_of("unknown") is None
