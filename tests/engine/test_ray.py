"""The same engine on a real local Ray: resources, isolation, timeouts, dying workers, events."""

import os
import subprocess
import sys

import pytest

from pipelines.cli.session import RunOptions
from pipelines.running.journal import Journal
from stages.errors import UserError

RAY = RunOptions(executor="ray", track=False, view="quiet")

TEXT = """\
name: onray
stages:
  a: {uses: "tests.toy:Write", with: {text: HELLO}}
  b: {uses: "tests.toy:Copy", inputs: {text: a}, resources: {cpus: 0.5, memory: 100MB}}
  c: {uses: "tests.toy:Copy", inputs: {text: a}, with: {mark: x}}
  d: {uses: "tests.toy:Join", inputs: {texts: [b, c]}}
  killed: {uses: "tests.toy:Fail", with: {how: kill, until_attempt: 2}, retries: 1}
  dead: {uses: "tests.toy:Fail", with: {how: kill}}
  slow: {uses: "tests.toy:Fail", with: {how: sleep}, timeout: 2s}
  below: {uses: "tests.toy:Copy", inputs: {text: slow}}
  user: {uses: "tests.toy:Fail", with: {how: user}, retries: 3}
"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """One run of everything on Ray, with its bench; starting Ray takes seconds, so tests share it."""
    from pipelines.store import open_store
    from tests.engine.conftest import Bench

    directory = tmp_path_factory.mktemp("ray")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TOY_RAN", str(directory / "ran"))
        patch.chdir(directory)
        bench = Bench(directory, open_store(str(directory / "store")), directory / "ran", RAY)
        yield bench, bench.run(TEXT)


def test_states(finished):
    _, result = finished
    assert result.states == {
        **dict.fromkeys("abcd", "done"),
        "killed": "done",
        "dead": "failed",
        "slow": "failed",
        "below": "skipped",
        "user": "failed",
    }


def test_failures_say_what_happened(finished):
    _, result = finished
    assert "its process died" in result.failures["dead"].message
    assert "timeout of 2 s" in result.failures["slow"].message
    assert (result.failures["user"].message, result.failures["user"].fix) == ("the input is bad", "mend the input")


def test_a_killed_worker_is_retried_with_its_scratch(finished):
    _, result = finished
    assert result.manifests["killed"].evidence["attempt"] == 2


def test_results_and_events_are_those_of_the_inline_executor(finished):
    bench, result = finished
    assert "HELLO+HELLOx" in (bench.output(result, "d") / "report.json").read_text()
    events = Journal(bench.store.run_directory(result.run) / "journal.jsonl").read()
    assert [event["values"] for event in events if event["event"] == "curve"] == [{"speed": 2.0}, {"speed": 2.0}]
    assert (bench.store.run_directory(result.run) / "logs" / "b.log").read_text() == "copying\n"
    bench.options = RunOptions(executor="inline", track=False, view="quiet")
    states = bench.run(TEXT.split("  killed")[0]).states
    bench.options = RAY
    assert set(states.values()) == {"cached"}, "where a stage ran is not part of what it is"


def test_what_no_node_can_give_is_refused_before_anything_runs(finished):
    bench, _ = finished
    before = bench.executions()
    text = TEXT.replace("HELLO", "OTHER").replace("cpus: 0.5, memory: 100MB", "cpus: 999, gpus: 7, memory: 999TB")
    with pytest.raises(UserError) as caught:
        bench.run(text)
    told = str(caught.value)
    assert "stage 'b': asks for 999 cpus" in told
    assert "asks for 7 gpus" in told
    assert "--set b.resources.memory" in told
    assert bench.executions() == before


def test_a_cached_run_never_starts_ray(finished, monkeypatch):
    bench, _ = finished
    monkeypatch.setattr("clusters.ray_executor.RayExecutor.__init__", lambda *_: pytest.fail("Ray was started"))
    assert set(bench.run(TEXT.split("  killed")[0]).states.values()) == {"cached"}


TURNS = """
import time

from clusters.environment import prepare
from clusters.executor import Request
from clusters.profile import Profile

prepare(Profile())
from clusters.ray_executor import RayExecutor


def work(payload, emit):
    began = time.time()
    while time.time() - began < 3:
        emit.stopping()
        time.sleep(0.01)
    return began, time.time()


executor = RayExecutor(work, lambda *_: None, Profile())
whole = Request(cpus=executor.capacity().node_cpus)
for name in "abc":
    executor.start(name, 1, whole)
spans = []
while len(spans) < 3:
    spans += [finished.result for finished in executor.wait()]
executor.close()
spans.sort()
print("apart", all(before[1] <= after[0] for before, after in zip(spans, spans[1:])), spans)
"""


def test_work_that_asks_whether_to_stop_keeps_its_room(tmp_path):
    done = script(tmp_path, TURNS)
    assert "apart True" in done.stdout, (done.stdout, done.stderr)


LISTENERS = """
import psutil
from clusters.environment import prepare
from clusters.executor import Request
from clusters.profile import Profile

prepare(Profile())
from clusters.ray_executor import RayExecutor


def work(payload, emit):
    emit({"event": "message", "text": "hi"})
    return payload


executor = RayExecutor(work, lambda *_: None, Profile())
executor.start("a", 1, Request())
print("result", executor.wait()[0].result)
me = psutil.Process()
for process in [me, *me.children(recursive=True)]:
    for connection in process.net_connections("inet"):
        if connection.status == psutil.CONN_LISTEN:
            print("listens", connection.laddr.ip)
executor.close()
"""


def script(directory, text):
    (directory / "script.py").write_text(text)
    path = os.pathsep.join([os.getcwd(), *sys.path])  # noqa: PTH109
    return subprocess.run(
        [sys.executable, "script.py"],
        cwd=directory,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_a_local_ray_listens_on_loopback_only(tmp_path):
    done = script(tmp_path, LISTENERS)
    assert "result 1" in done.stdout, done.stderr
    addresses = {line.split()[1] for line in done.stdout.splitlines() if line.startswith("listens")}
    assert addresses
    assert addresses <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}, addresses
