"""Work that finds no room in the cluster says so: what it asks for, what there is, and since when."""

import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
import ray

from clusters import room, situation
from clusters.environment import prepare
from clusters.executor import Capacity, Request, Share
from clusters.profile import Profile
from clusters.room import Situation, Waits
from pipelines.cli.history import show_status
from pipelines.planning.preflight import check_capacity
from pipelines.planning.selection import EVERYTHING, Selection
from pipelines.remote.submit import Wish
from pipelines.running.journal import JournalWriter
from pipelines.spec.document import Document
from pipelines.spec.load import parse
from pipelines.store import open_store
from stages.errors import UserError
from tests.engine.conftest import bench as bench

GIB = 2**30
ONE = Request(cpus=2, memory_bytes=GIB)
GROUP = Request(workers=2, cpus=3, gpus=1)
NODES = (Share(4, 2, 8 * GIB), Share(4, 0, 8 * GIB))


class Cluster:
    """A cluster that is what a test says, and a clock that goes when it says so."""

    def __init__(self, monkeypatch, **waits) -> None:
        self.now, self.told, self.looks = 0.0, [], 0
        self.state = Situation(NODES, (Share(1, 0, 3 * GIB), Share(0, 0, 0)))
        monkeypatch.setattr(room.time, "monotonic", lambda: self.now)
        self.waits = Waits(self.look, lambda name, event: self.told.append((self.now, name, event)), **waits)

    def look(self) -> Situation:
        self.looks += 1
        return self.state

    def pass_time(self, seconds: float) -> dict[str, str]:
        """Look whenever it is time to, as an executor does."""
        end, given_up = self.now + seconds, {}
        while (due := self.waits.due()) is not None and due <= end and not given_up:
            self.now = max(self.now, due)
            given_up = self.waits.check()
        self.now = end if not given_up else self.now
        return given_up


@pytest.fixture
def cluster(monkeypatch):
    return Cluster(monkeypatch)


@pytest.mark.parametrize(
    ("share", "asked", "expected"),
    [
        (Share(1, 0, 0), Request(workers=9, cpus=0.2), 5),
        (Share(0.3, 0, 0), Request(workers=9, cpus=0.1), 3),
        (Share(4, 1, 0), Request(workers=9, cpus=1, gpus=0.1), 4),
        (Share(4, 1, GIB), Request(workers=9, cpus=1, gpus=0.3, memory_bytes=GIB // 2), 2),
        (Share(0.9999, 0, 0), Request(workers=9, cpus=0.5), 1),
        (Share(8, 0, 0), Request(workers=2, cpus=1), 2),
    ],
)
def test_fractions_fit_as_often_as_ray_fits_them(share, asked, expected):
    assert share.num_workers(asked) == expected


def test_fractions_are_those_that_ray_tells():
    assert Situation((), (), tasks=[Request(cpus=0.3).shape()]).waits(Request(cpus=0.1 + 0.2))
    assert not Situation((), (), tasks=[Request(cpus=0.3).shape()]).waits(Request(cpus=0.3, gpus=0.1))


def test_it_is_told_once_and_then_at_growing_intervals(cluster):
    cluster.state = Situation(NODES, cluster.state.free, tasks=[ONE.shape()])
    cluster.waits.started("a", ONE)
    cluster.pass_time(7200)
    assert [moment for moment, _, _ in cluster.told] == [5, 25, 105, 425, 1705, 3505, 5305, 7105]
    _, name, event = cluster.told[0]
    assert (name, event["event"]) == ("a", "waits-for-room")
    assert event["text"].startswith("waits for room since ")
    assert event["text"].endswith(
        "asks for 2 cpus, 1 GiB; free now: 1 of 8 cpus on 2 nodes, at most 1 cpus, 3 GiB on one"
    )


def test_what_has_begun_is_not_looked_at_again(cluster):
    cluster.state = Situation(NODES, cluster.state.free, tasks=[ONE.shape()])
    cluster.waits.started("a", ONE)
    cluster.waits.heard_of("a", began=True)
    cluster.pass_time(100)
    assert (cluster.told, cluster.looks) == ([], 0), "another run may ask for the same"


def test_that_it_has_room_is_told_when_it_was_said_to_wait(cluster):
    cluster.state = Situation(NODES, cluster.state.free, tasks=[ONE.shape()])
    cluster.waits.started("a", ONE)
    cluster.pass_time(30)
    cluster.waits.heard_of("a", began=True)
    assert [event["event"] for _, _, event in cluster.told] == ["waits-for-room", "waits-for-room", "has-room"]
    assert cluster.told[-1][2]["text"] == "has room after 30 s"
    assert cluster.waits.due() is None


def test_a_queue_behind_the_runs_own_work_is_told_as_one(cluster):
    cluster.state = Situation(NODES, cluster.state.free, tasks=[ONE.shape()])
    for name in ("a", "b", "c"):
        cluster.waits.started(name, ONE)
        cluster.waits.heard_of(name, began=True)
    cluster.waits.started("d", ONE)
    cluster.pass_time(6)
    cluster.waits.heard_of("d", began=True)
    assert "behind a, b and 1 more: asks for 2 cpus" in cluster.told[0][2]["text"]
    assert [(name, event["queues"]) for _, name, event in cluster.told] == [("d", True)] * 2
    for name in ("a", "b", "c", "d"):
        cluster.waits.ended(name)
    cluster.waits.started("e", ONE)
    cluster.pass_time(6)
    assert "behind" not in cluster.told[-1][2]["text"], "others have the room"
    assert not cluster.told[-1][2]["queues"]


def test_what_was_seen_to_have_room_is_what_others_queue_behind(cluster):
    """A look finds that it waits no longer, before its process says that it has begun."""
    cluster.state = Situation(NODES, cluster.state.free, tasks=[ONE.shape()])
    cluster.waits.started("a", ONE)
    cluster.pass_time(6)
    cluster.state = Situation(NODES, cluster.state.free)
    cluster.pass_time(30)
    assert cluster.told[-1][2]["event"] == "has-room"
    cluster.waits.heard_of("a", began=True)
    cluster.state = Situation(NODES, cluster.state.free, tasks=[ONE.shape()])
    cluster.waits.started("b", ONE)
    cluster.pass_time(6)
    assert ", behind a: asks for" in cluster.told[-1][2]["text"]


def test_work_whose_process_is_slow_to_start_does_not_wait_for_room(cluster):
    cluster.waits.started("a", ONE)
    cluster.pass_time(600)
    assert (cluster.told, cluster.looks) == ([], 4)


def test_a_group_is_told_and_is_quiet_when_it_has_its_place(cluster):
    cluster.state = Situation(NODES[:1] * 2, (Share(1, 0, 0), Share(4, 1, 0)), groups=[2])
    cluster.waits.started("g", GROUP)
    cluster.waits.heard_of("g", began=True)
    cluster.pass_time(6)
    [(_, _, event)] = cluster.told
    told = "asks for 2 × (3 cpus, 1 gpu); free now: 5 of 8 cpus, 1 of 4 gpus on 2 nodes, at most 4 cpus, 1 gpus on one"
    assert event["text"].endswith(told)
    cluster.waits.heard_of("g", began=False)
    assert cluster.told[-1][2]["event"] == "has-room"
    cluster.state = Situation(NODES, cluster.state.free)
    cluster.pass_time(600)
    assert len(cluster.told) == 2


def test_what_no_node_that_is_up_can_hold_is_given_up_after_a_while(cluster):
    """One of two nodes with GPUs died: the group fitted when the run began."""
    cluster.state = Situation(NODES, NODES, groups=[2])
    cluster.waits.started("g", GROUP)
    given_up = cluster.pass_time(3600)
    assert cluster.now == 5 + room.PATIENCE_SECONDS
    assert "no node that is up could ever hold it, and it fails in 600 s unless one comes" in cluster.told[0][2]["text"]
    assert given_up["g"].startswith("asks for 2 × (3 cpus, 1 gpu); free now: 8 of 8 cpus")
    assert given_up["g"].endswith("no node that is up could ever hold it")


def test_a_node_that_comes_back_in_time_ends_the_despair(cluster):
    cluster.state = Situation(NODES, NODES, groups=[2])
    cluster.waits.started("g", GROUP)
    cluster.pass_time(300)
    cluster.state = Situation(NODES[:1] * 2, NODES, groups=[2])
    assert cluster.pass_time(7200) == {}
    assert "no node that is up" not in cluster.told[-1][2]["text"]


def test_a_cluster_that_may_grow_leaves_hope(monkeypatch):
    cluster = Cluster(monkeypatch, may_grow=True)
    cluster.state = Situation(NODES, NODES, groups=[2])
    cluster.waits.started("g", GROUP)
    assert cluster.pass_time(7200) == {}
    assert "no node that is up" not in cluster.told[-1][2]["text"]


def node(alive: bool, **resources: float) -> dict:
    return {"NodeID": str(resources), "Alive": alive, "Resources": {"CPU": 4, "memory": 8 * GIB, **resources}}


def test_a_node_that_is_dead_when_a_run_begins_counts_for_nothing(monkeypatch):
    monkeypatch.setattr(situation.ray, "nodes", lambda: [node(True), node(False, GPU=8)])
    assert situation.capacity() == Capacity(4, 0, 8 * GIB, 4, 0, (Share(4, 0, 8 * GIB),))


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ("workers: 2, cpus: 3, gpus: 1", "asks for 2 workers of 3 cpus, 1 gpus and 0 B each"),
        ("workers: 3, cpus: 2.5", "asks for 3 workers of 2.5 cpus"),
        ("workers: 9, cpus: 1", "asks for 9 × 1 = 9 cpus"),
        ("workers: 2, cpus: 4", ""),
        ("workers: 1, cpus: 4, gpus: 2", ""),
    ],
)
def test_a_group_that_fits_on_no_nodes_is_refused_before_compute(bench, monkeypatch, asked, told):
    monkeypatch.setattr("tests.toy.Write.distributed", True)
    plan = bench.plan(f"name: x\nstages:\n  a: {{uses: 'tests.toy:Write', resources: {{{asked}}}}}\n")
    here = Capacity(4, 2, 8 * GIB, 8, 2, NODES)
    if not told:
        check_capacity(plan.may_run, here, "cluster 'x'")
        return
    with pytest.raises(UserError, match="stage 'a': ") as caught:
        check_capacity(plan.may_run, here, "cluster 'x'")
    assert told in caught.value.message
    check_capacity(plan.may_run, Profile(address="auto", cpus=16, gpus=16, nodes=2).widest(here), "cluster 'x'")


def test_what_is_submitted_is_weighed_without_the_stages_that_were_not_chosen():
    text = "name: x\nstages:\n  a: {uses: 'tests.toy:Write', resources: {cpus: 64}}\n"
    pipeline = parse(Document("p", text + "  b: {uses: 'tests.toy:Copy', inputs: {text: a}}\n"))
    wish = Wish(pipeline, Path("p"), "x", "s3://b/s", Selection(only=("b",)), ())
    check_capacity(wish.may_run, Capacity(4, 2, 8 * GIB, 8, 2, NODES), "cluster 'x'")
    with pytest.raises(UserError, match="asks for 64 cpus"):
        check_capacity(replace(wish, selection=EVERYTHING).may_run, Capacity(4, 2, 8 * GIB, 8, 2, NODES), "x")


def test_status_tells_it(tmp_path, capsys):
    store = open_store(str(tmp_path))
    journal = JournalWriter(store.run_directory("r"))
    stages = [{"name": name, "slug": name, "uses": "tests.toy:Write"} for name in "ab"]
    journal.write({"event": "run-started", "run": "r", "stages": stages})
    for name in "ab":
        journal.write({"event": "stage-started", "stage": name, "attempt": 1, "reasons": []})
        journal.write({"event": "waits-for-room", "stage": name, "text": f"waits for {name}-room"})
    journal.write({"event": "has-room", "stage": "b", "text": "has room after 5 s"})
    show_status(store, "r", as_json=False)
    told = capsys.readouterr().out
    assert "waits for a-room" in told
    assert "b-room" not in told
    journal.close()


def hold(payload, emit):
    """Real work: keeps its CPUs until a file is there, or takes those of a group."""
    if payload == "group":
        group = ray.util.placement_group([{"CPU": 1}] * 2)
        ray.get(group.ready())
        emit({"event": "message", "text": "has its group"})
        ray.util.remove_placement_group(group)
    while payload and payload != "group" and not Path(payload).exists():
        time.sleep(0.05)
    return payload


def test_on_a_real_cluster(monkeypatch, tmp_path):
    profile, gate = Profile(cpus=2), tmp_path / "gate"
    prepare(profile)
    from clusters.ray_executor import RayExecutor

    monkeypatch.setattr(room, "FIRST_SECONDS", 0.5)
    monkeypatch.setattr(room, "GROWTH", 1)
    told: dict[str, list[str]] = {"first": [], "second": [], "group": []}

    def hear(name, event):
        told[name].append(event["text"])
        if told["second"] and told["group"]:
            gate.touch()

    executor = RayExecutor(hold, hear, profile)
    try:
        executor.start("first", str(gate), Request(cpus=2))
        while executor.waits.due() is not None:  # until its process has begun
            executor.wait(0.1)
        executor.start("second", "", Request(cpus=2))
        executor.start("group", "group", Request(workers=2, cpus=1))
        ended: set[str] = set()
        while len(ended) < 3:
            ended |= {finished.name for finished in executor.wait()}
    finally:
        executor.close()
    assert told["first"] == []
    assert "asks for 2 cpus; free now: 0 of 2 cpus on 1 node, at most 0 cpus on one" in told["second"][0]
    assert "asks for 2 × (1 cpu); free now: 0 of 2 cpus" in told["group"][0]
    assert told["second"][-1].startswith("has room after")
    assert [text.split(" after")[0] for text in told["group"][-2:]] == ["has room", "has its group"]


class Maker:
    """An actor that makes a group and holds on to it, as the controller of a training does."""

    def make(self, cpus: int) -> int:
        group = ray.util.placement_group([{"CPU": 1}] * cpus)
        ray.get(group.ready())
        return os.getpid()


def test_what_a_killed_attempt_held_is_freed_for_the_next(monkeypatch):
    """Ray keeps a group whose maker was killed; nobody but the run itself can tell that it is nobody's any more."""
    profile = Profile(cpus=2)
    prepare(profile)
    from clusters.ray_executor import RayExecutor

    monkeypatch.setattr(room, "FIRST_SECONDS", 0.5)
    monkeypatch.setattr(room, "GROWTH", 1)
    told: list[str] = []
    executor = RayExecutor(hold, lambda _name, event: told.append(event["text"]), profile)
    try:
        maker = ray.remote(num_cpus=0)(Maker).remote()
        os.kill(ray.get(maker.make.remote(2)), signal.SIGKILL)
        with pytest.raises(ray.exceptions.RayActorError):
            ray.get(maker.make.remote(2))
        assert ray.available_resources().get("CPU", 0) == 0, "Ray has freed it: nothing is left to do here"
        executor.start("next", "group", Request(workers=2, cpus=1))
        ended = []
        while not ended:
            ended = executor.wait(60)
        assert ended[0].failure is None
    finally:
        executor.close()
    assert told[-1].startswith("has its group")
