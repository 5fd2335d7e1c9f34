"""Failures: isolated, retried only when that can help, told with their own words, and nothing finished is lost."""

import os
import signal
import subprocess
import sys
import threading
import uuid
from functools import partial

import pytest

from clusters.executor import InlineExecutor
from clusters.lost import ClusterLostError, Loss
from pipelines.cli import session
from pipelines.cli.history import read_run
from pipelines.planning.plan import Step
from pipelines.remote.cancel import cancel
from pipelines.running import attempts
from pipelines.running.journal import Journal, JournalWriter, list_runs
from pipelines.running.record import Failure
from pipelines.running.task import Surroundings
from pipelines.running.worker import _failure, execute
from pipelines.spec.document import Document
from pipelines.spec.load import parse
from pipelines.store import open_store
from pipelines.store.holder import Holder
from pipelines.store.lease import UnreachableError
from stages.errors import StageError, UserError

TWO_BRANCHES = """\
name: branches
stages:
  bad: {uses: "tests.toy:Fail", with: {how: HOW}, timeout: 1s}
  below: {uses: "tests.toy:Copy", inputs: {text: bad}}
  further: {uses: "tests.toy:Copy", inputs: {text: below}}
  good: {uses: "tests.toy:Write"}
  other: {uses: "tests.toy:Copy", inputs: {text: good}}
"""


@pytest.mark.parametrize(
    ("how", "message", "users_fault"),
    [
        ("user", "the input is bad", True),
        ("fault", "StageError: something broke", False),
        ("nothing", "wrote nothing for its output 'text'", True),
        ("sleep", "timeout of 1 s", False),
    ],
)
def test_a_failure_stops_only_what_depends_on_it(bench, how, message, users_fault):
    result = bench.run(TWO_BRANCHES.replace("HOW", how))
    assert result.states == {"bad": "failed", "below": "skipped", "further": "skipped", "good": "done", "other": "done"}
    assert message in result.failures["bad"].message
    assert result.failures["bad"].users_fault == users_fault
    assert not result.ok


def test_the_log_of_an_unforeseen_failure_is_shown(bench):
    failure = bench.run(TWO_BRANCHES.replace("HOW", "fault")).failures["bad"]
    assert "StageError: something broke" in failure.tail
    assert "toy.py" in failure.tail


def test_retries_help_against_faults(bench):
    text = "name: x\nstages:\n  a: {uses: 'tests.toy:Fail', with: {how: fault, until_attempt: 2}, retries: 1}\n"
    result = bench.run(text)
    assert result.ok
    assert result.manifests["a"].evidence["attempt"] == 2, "and scratch survived between them"


def test_user_errors_are_not_retried(bench):
    text = "name: x\nstages:\n  a: {uses: 'tests.toy:Fail', with: {how: user, until_attempt: 2}, retries: 5}\n"
    result = bench.run(text)
    assert result.states == {"a": "failed"}


def test_a_source_that_changes_after_the_plan_is_not_published_under_the_old_key(bench):
    """The file that toy stages leave a line in when they run: whoever reads it changes it."""
    bench.ran_file.write_text("a line\n")
    text = "name: x\nstages:\n  a: {uses: 'tests.toy:ReadFile', with: {path: ran}, retries: 2}\n"
    failure = bench.run(text).failures["a"]
    assert failure.message.startswith("file: ran has changed since the run was planned: it was ")
    assert failure.users_fault, "told at once"
    assert "run the pipeline again" in failure.fix
    assert len(bench.executions()) == 2
    earlier = "name: x\nstages:\n  w: {uses: 'tests.toy:Write'}\n  z: {uses: 'tests.toy:ReadFile', with: {path: ran}}\n"
    result = bench.run(earlier)
    assert "has changed since" in result.failures["z"].message
    assert bench.executions()[2:] == ["Write:hello"], "found out before any work"
    assert list((bench.store.root / "work").iterdir()) == []


def test_no_leftovers(bench):
    bench.run(TWO_BRANCHES.replace("HOW", "fault"))
    assert list((bench.store.root / "work").iterdir()) == []
    assert len(list((bench.store.root / "scratch").iterdir())) == 1, "only the failed stage's, to resume from"


def test_a_gate_fails_the_stage_and_keeps_its_result(bench):
    text = """\
name: gated
stages:
  a: {uses: "tests.toy:Write", expect: {length: "> 10"}}
  b: {uses: "tests.toy:Copy", inputs: {text: a}}
"""
    for attempt in ("first", "again from the cache"):
        result = bench.run(text)
        assert result.states == {"a": "failed", "b": "skipped"}, attempt
        assert result.failures["a"].message == "expected length > 10, found length = 5"
        assert bench.output(result, "a").exists()
    assert bench.executions() == ["Write:hello"]
    assert bench.run(text, "a.expect.length='> 3'").ok


def test_a_gate_on_another_stage_waits_for_it(bench):
    text = """\
name: gated
params: {most: 2}
stages:
  a: {uses: "tests.toy:Write", with: {text: abcdef}, expect: {length: "<= ${params.most} * ${b.length}"}}
  b: {uses: "tests.toy:Write", with: {text: abc}}
"""
    assert bench.run(text).ok
    failure = bench.run(text, "params.most=1.5").failures["a"]
    assert failure.message == "expected length <= 1.5 * ${b.length}, found length = 6, and the bound is 4.5"
    result = bench.run(text, "b.scale=2", "b.text=x")
    assert result.states == {"a": "failed", "b": "done"}, "gates are judged anew, stages are not run anew"


def test_nan_fails_any_gate(bench):
    text = "name: x\nstages:\n  a: {uses: 'tests.toy:Fail', with: {how: nan}, expect: {length: '< 9'}}\n"
    assert "found length = nan" in bench.run(text).failures["a"].message


def test_ctrl_c(bench):
    text = TWO_BRANCHES.replace("HOW", "interrupt")
    result = bench.run(text)
    assert result.cancelled
    assert result.states["bad"] == "cancelled"
    events = Journal(bench.store.run_directory(result.run) / "journal.jsonl").read()
    assert events[-1]["state"] == "cancelled"


def test_missing_sources_are_told_together_before_anything_runs(bench):
    text = """\
name: x
stages:
  a: {uses: "tests.toy:ReadFile", with: {path: none.txt}}
  b: {uses: "tests.toy:ReadFile", with: {path: nothing.txt}}
  c: {uses: "tests.toy:Write"}
"""
    with pytest.raises(UserError) as caught:
        bench.run(text)
    assert "stage 'a'" in str(caught.value)
    assert "nothing.txt" in str(caught.value)
    assert bench.executions() == []


def test_a_source_that_cannot_be_asked_is_told_by_its_name(bench, monkeypatch):
    def ask(_):
        raise OSError("no route to the hub")

    monkeypatch.setattr("tests.toy.ReadFile.sources", ask)
    with pytest.raises(UserError, match="cannot ask for its sources: no route to the hub"):
        bench.run("name: x\nstages:\n  a: {uses: 'tests.toy:ReadFile', with: {path: x}}\n")


def test_the_journal_tells_the_whole_story(bench):
    text = "name: x\nstages:\n  a: {uses: 'tests.toy:Write'}\n  b: {uses: 'tests.toy:Copy', inputs: {text: a}}\n"
    result = bench.run(text)
    directory = bench.store.run_directory(result.run)
    events = Journal(directory / "journal.jsonl").read()
    kinds = [(event["event"], event.get("stage")) for event in events]
    assert kinds == [
        ("run-started", None),
        ("stage-started", "a"),
        ("stage-finished", "a"),
        ("stage-started", "b"),
        ("curve", "b"),
        ("stage-finished", "b"),
        ("run-finished", None),
    ]
    finished = events[5]
    assert finished["inputs"][0]["digest"] == finished["outputs"][0]["digest"], "a copy has the digest of its input"
    assert finished["metrics"] == {"length": 5}
    assert (directory / "logs" / "b.log").read_text() == "copying\n"
    assert events[0]["versions"]["python"]
    assert events[0]["resolved"]["stages"]["b"]["uses"] == "tests.toy:Copy"


def test_a_store_out_of_reach_is_no_fault_of_the_user():
    away, wrong = (_failure(kind("away"), None, None, 1.0) for kind in (UnreachableError, UserError))
    assert not away.users_fault, "so that retries count"
    assert wrong.users_fault


def test_a_store_that_is_away_when_a_stage_is_ready_is_asked_again(bench, monkeypatch):
    monkeypatch.setattr(attempts, "LOOK_SECONDS", 0.05)
    monkeypatch.setenv("REGRAFT_CACHE", str(bench.directory / "cache"))
    bench.store = open_store(f"memory://{uuid.uuid4().hex}/store")
    real, away = bench.store.remote.cat_file, iter(range(2))

    def cat_file(path, **more):
        if "tests.toy-Copy" in path and next(away, None) is not None:
            raise TimeoutError("no answer")
        return real(path, **more)

    monkeypatch.setattr(bench.store.remote, "cat_file", cat_file)
    text = "name: x\nstages:\n  a: {uses: 'tests.toy:Write'}\n  b: {uses: 'tests.toy:Copy', inputs: {text: a}}\n"
    result = bench.run(text)
    assert result.states == {"a": "done", "b": "done"}
    events = Journal(bench.store.run_directory(result.run) / "journal.jsonl").read()
    [told] = [event["text"] for event in events if event["event"] == "message"]
    assert "cannot reach the store" in told


class AllAtOnce(InlineExecutor):
    """Takes all work at once, as a cluster does."""

    def full(self):
        return False


@pytest.fixture
def at_once(monkeypatch):
    monkeypatch.setattr(session, "_executor_maker", lambda *_: partial(AllAtOnce, execute))


def test_after_a_failure_fail_fast_starts_no_attempt_of_what_was_under_way(bench, at_once):
    bench.options = session.RunOptions(executor="inline", track=False, view="quiet", fail_fast=True)
    result = bench.run(
        "name: x\nstages:\n"
        "  a: {uses: 'tests.toy:Fail'}\n"
        "  b: {uses: 'tests.toy:Fail', with: {until_attempt: 99}, retries: 2}\n"
        "  c: {uses: 'tests.toy:Greedy'}\n"
        "  d: {uses: 'tests.toy:Copy', inputs: {text: c}}\n"
    )
    assert result.states == {"a": "failed", "b": "failed", "c": "failed", "d": "skipped"}
    events = Journal(bench.store.run_directory(result.run) / "journal.jsonl").read()
    assert [event["stage"] for event in events if event["event"] == "stage-started"] == ["a", "b", "c"]


class Losing(AllAtOnce):
    """A cluster that dies when it is given the work called `b`."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.loss = Loss()

    def start(self, name, payload, request):
        super().start(name, payload, request)
        if name == "b":
            thread = threading.Thread(target=self.loss.tell, args=("the head",))
            thread.start()
            thread.join()

    def check(self):
        self.loss.check()


def test_a_cluster_that_is_lost_at_any_moment_is_no_ctrl_c(bench, monkeypatch):
    """`a` pauses after a failure and `b` is just being started when the interrupt comes."""
    monkeypatch.setattr(session, "_executor_maker", lambda *_: partial(Losing, execute))
    result = bench.run(
        "name: x\nstages:\n"
        "  a: {uses: 'tests.toy:Fail', retries: 1}\n"
        "  w: {uses: 'tests.toy:Write'}\n"
        "  b: {uses: 'tests.toy:Copy', inputs: {text: w}}\n"
        "  c: {uses: 'tests.toy:Copy', inputs: {text: b}}\n"
    )
    assert not result.cancelled
    assert result.states == {"a": "failed", "w": "done", "b": "failed", "c": "skipped"}
    assert {failure.message for failure in result.failures.values()} == {"the head has died while the stage ran"}


@pytest.fixture
def ctrl_c():
    """SIGINT as a shell's foreground has it: its background ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ctrl_c")
def test_the_parts_of_a_lost_cluster_interrupt_once():
    loss = Loss()
    loss.check(patience_seconds=0.01)
    with pytest.raises(KeyboardInterrupt):
        loss.tell("the head")
    loss.tell("the raylet")
    with pytest.raises(ClusterLostError, match="the head has died"):
        loss.check()


def test_what_a_failed_stage_advises_is_told_as_its_fix():
    outcome = _failure(StageError("the server went away", where="judge", fix="start it again"), None, None, 1.0)
    assert (outcome.message, outcome.fix) == ("StageError: judge: the server went away", "start it again")
    assert not outcome.users_fault


def test_a_module_that_is_missing_is_told_by_what_can_be_installed():
    missing = ModuleNotFoundError("No module named 'scipy.optimize'", name="scipy.optimize")
    assert _failure(missing, None, None, 1.0).fix == "pip install scipy"


def test_an_attempt_that_another_run_took_for_dead_did_not_fail(bench):
    spec = parse(Document("f", "name: x\nstages:\n  a: {uses: 'tests.toy:Write', retries: 1}\n")).stages["a"]
    journal = JournalWriter(bench.store.run_directory("r"))
    tried = attempts.Attempts(bench.store, journal, Surroundings("r", bench.directory, (), {}), None, {})
    step, failure = Step(spec, "run", ()), Failure("broke")
    tried.fenced["a"] = 1
    assert tried.pause(step, 2, failure), "the first that failed"
    assert not tried.pause(step, 3, failure)
    journal.close()


def test_a_run_that_is_refused_after_it_began_has_failed(bench, monkeypatch):
    def refuse(*_):
        raise UserError("the cluster is too small")

    monkeypatch.setattr(session, "_executor_maker", lambda *_: refuse)
    with pytest.raises(UserError, match="too small"):
        bench.run("name: one\nstages:\n  a: {uses: 'tests.toy:Write'}\n")
    [run] = list_runs(bench.store.root)
    assert read_run(bench.store, run).state == "failed"


@pytest.mark.parametrize("answer", [ProcessLookupError, PermissionError])
def test_a_driver_that_cannot_be_signalled_is_told(bench, monkeypatch, answer):
    """It ends between the look and the signal, or belongs to somebody else."""
    driver = subprocess.Popen([sys.executable, "-c", "import time; print(flush=True); time.sleep(60)"], stdout=-1)
    driver.stdout.readline()
    with monkeypatch.context() as patch:
        patch.setattr(os, "getpid", lambda: driver.pid)
        holder = Holder.here("r")
    real = os.kill

    def kill(*_):
        real(driver.pid, signal.SIGKILL)
        driver.wait()
        raise answer

    writer = JournalWriter(bench.store.run_directory("r"))
    writer.write({"event": "run-started", "run": "r", "pipeline": "x", "stages": []})
    writer.mark.write_text(holder.to_json())
    monkeypatch.setattr(os, "kill", kill)
    if answer is PermissionError:
        with pytest.raises(UserError, match="belongs to another user"):
            cancel(bench.store, "r", 0.0, None)
    else:
        assert cancel(bench.store, "r", 0.0, None) == []
