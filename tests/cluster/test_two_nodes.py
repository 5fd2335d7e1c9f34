"""A submitted run on two nodes: survives its client and a node, is followed and cancelled from afar, keeps secrets."""

import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.command import ROOT, Regraft, until
from tests.cluster.two_nodes import TwoNodes, require_two_nodes

pytestmark = pytest.mark.cluster

STEPS = 40
SECRET = secrets.token_hex(8)
"""Not in any file: the tests' own code is sent along."""


@pytest.fixture(scope="module")
def nodes() -> Iterator[TwoNodes]:
    require_two_nodes()
    cluster = TwoNodes(head_cpus=2)
    try:
        cluster.start_other(cpus=2)
        yield cluster
    finally:
        cluster.close()


@pytest.fixture
def client(nodes: TwoNodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Regraft:
    """The command, in a directory with the code of the test stages, and a profile of the cluster."""
    for name, value in nodes.variables.items():
        monkeypatch.setenv(name, value)
    for name in ("tests/__init__.py", "tests/toy.py", "tests/toy_helper.py", "tests/cluster", "tests/training"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copyfile
        (tmp_path / "here" / name).parent.mkdir(exist_ok=True, parents=True)
        copy(ROOT / name, tmp_path / "here" / name)
    regraft = Regraft(tmp_path / "here", {**nodes.variables, "PASSWORD": SECRET})
    regraft.write(nodes.profile(env="[PASSWORD, ABSENT]"), "two.yaml")
    return regraft


def submit(client: Regraft, text: str, *arguments: str) -> str:
    """Submit the pipeline; returns the run's name."""
    done = client("submit", client.write(text), "--cluster", "two.yaml", "--no-track", *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.split()[1]


def test_a_node_dies_and_the_run_completes(client: Regraft, nodes: TwoNodes, train_pipeline):
    text = train_pipeline(STEPS, workers=2, seconds=0.1)
    run = submit(client, text)
    assert client("submit", "pipeline.yaml", "--cluster", "two.yaml", "--no-track").stdout.startswith(
        f"the very same runs there already, as {run}"
    )
    following = client.start("logs", "-f", run)
    client.await_steps(3)
    nodes.kill("other")
    assert following.wait(240) == 0, client.output
    assert f"run {run}: done (3 done)" in client.output
    started = [event["attempt"] for event in client.events(run) if event["event"] == "stage-started"]
    assert client.states(run) == {"first": "done", "train": "done", "last": "done"}
    assert len(started) >= 3
    resumed = [e["text"] for e in client.events(run) if e["event"] == "message" and "resuming after step" in e["text"]]
    on_two = [e["step"] for e in client.events(run) if e["event"] == "curve" and e["stage"] == "train"]
    assert resumed or len(on_two) == STEPS, "either the gang was hit, and went on from its checkpoint, or it was not"
    assert set(on_two) == set(range(1, STEPS + 1))


def test_secrets_reach_the_stage_and_nobody_else(client: Regraft, nodes: TwoNodes):
    run = submit(client, 'name: s\nstages:\n  tell: {uses: "tests.cluster.stages:Tell"}\n')
    assert client("logs", "-f", run).returncode == 0
    assert client.events(run)[-2]["metrics"] == {"length": len(SECRET)}
    assert nodes.logs_with(SECRET) == []
    assert SECRET not in client.ask_jobs(nodes.dashboard, 'client._do_request("GET", "/api/jobs/").text')
    below = [path for path in client.directory.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()]
    assert below == []


def test_cancelled_from_afar(client: Regraft, nodes: TwoNodes):
    text = 'name: slow\nstages:\n  s: {uses: "tests.toy:Fail", with: {how: sleep}}\n'
    run = submit(client, text)
    client.await_event(event="stage-started", stage="s")
    cancelled = client("cancel", run, "--grace", "1s", "--store", "not-here")  # as where its driver cannot be seen
    assert cancelled.returncode == 0, cancelled.stdout + cancelled.stderr
    assert "nothing is left: no actor, no placement group, no process of this run" in cancelled.stdout
    assert client.states(run) == {"s": "cancelled"}
    assert client.ask_jobs(nodes.dashboard, f"find({run!r}).ended") == "True"


def test_what_cannot_work_is_refused_before_anything_is_sent(client: Regraft, nodes: TwoNodes):
    before = client.ask_jobs(nodes.dashboard, "list().__len__()")
    text = 'name: big\nstages:\n  s: {uses: "tests.toy:Write", resources: {cpus: 64}}\n'
    refused = client("submit", client.write(text), "--cluster", "two.yaml")
    assert refused.returncode == 2
    assert "stage 's': asks for 64 cpus" in refused.stderr
    client.write(nodes.profile().replace(str(nodes.dashboard_port), "1"), "nobody.yaml")
    unreachable = client("submit", "pipeline.yaml", "--cluster", "nobody.yaml")
    assert "no Ray dashboard answers at http://127.0.0.1:1" in unreachable.stderr
    token = client.variables["RAY_AUTH_TOKEN_PATH"]
    client.variables["RAY_AUTH_TOKEN_PATH"] = str(client.directory / "wrong")
    (client.directory / "wrong").write_text("wrong" * 8)
    stranger = client("submit", "pipeline.yaml", "--cluster", "two.yaml")
    assert "does not let us in" in stranger.stderr
    assert "RAY_AUTH_TOKEN" in stranger.stderr
    client.variables["RAY_AUTH_TOKEN_PATH"] = token
    assert client.ask_jobs(nodes.dashboard, "list().__len__()") == before


def test_when_the_head_dies_the_run_is_told_dead_and_can_be_resumed(client: Regraft, nodes: TwoNodes):
    text = """\
name: x
stages:
  a: {uses: "tests.toy:Write"}
  s: {uses: "tests.toy:Fail", inputs: {text: a}, with: {how: sleep, until_attempt: 2}}
"""
    run = submit(client, text)
    client.await_event(event="stage-started", stage="s")
    until(lambda: any((client.directory / ".regraft" / "scratch").rglob("attempts")), "the stage has begun")
    following = client.start("logs", "-f", run)
    nodes.kill("head")
    until(lambda: following.poll() is not None, "the log ends")
    assert following.returncode == 1
    assert "ended without a word" in client.output or f"run {run}: failed" in client.output
    resumed = client("resume", run, "--inline", "--view", "lines")
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    assert client.states(client.runs[-1]) == {"a": "cached", "s": "done"}
