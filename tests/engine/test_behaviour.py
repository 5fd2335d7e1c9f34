"""What reruns after what: the table that a pipeline engine is judged by.

Chain of three: `first` reads the beginning of a file, `second` and `last` copy. The cells are the stages that execute.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.cli.compare import show_comparison
from pipelines.cli.history import read_run, show_status
from pipelines.running.journal import list_runs
from pipelines.store import open_store
from tests.engine.conftest import Bench
from tests.holders import dead

CHAIN = """\
name: chain
stages:
  first: {uses: "tests.toy:ReadFile", with: {path: input.txt, characters: 5}}
  second: {uses: "tests.toy:Copy", inputs: {text: first}, with: {mark: "2"}}
  last: {uses: "tests.toy:Copy", inputs: {text: second}, with: {mark: "3"}}
"""


@pytest.fixture
def ran_once(bench: Bench) -> Bench:
    Path("input.txt").write_text("hello world")
    assert bench.ran(CHAIN) == ["first", "second", "last"]
    return bench


def test_nothing(ran_once):
    assert ran_once.ran(CHAIN) == []


def test_touch(ran_once):
    os.utime("input.txt", (1, 1))
    assert ran_once.ran(CHAIN) == []


def test_input_changes_but_not_what_is_made_of_it(ran_once):
    Path("input.txt").write_text("hello there")
    assert ran_once.plan(CHAIN).steps["second"].state == "unknown"
    assert ran_once.ran(CHAIN) == ["first"]


def test_input_changes(ran_once):
    Path("input.txt").write_text("other world")
    assert ran_once.ran(CHAIN) == ["first", "second", "last"]


def test_intermediate_deleted(ran_once):
    result = ran_once.run(CHAIN)
    manifest = result.manifests["second"]
    directory = ran_once.store.directory(manifest.method, manifest.key)
    subprocess.run(["rm", "-r", str(directory)], check=True)
    assert ran_once.ran(CHAIN) == ["second"], "restored; what came of it before is still right"
    assert directory.exists()


def test_intermediate_corrupt(ran_once):
    result = ran_once.run(CHAIN)
    report = ran_once.output(result, "second") / "report.json"
    good = report.read_bytes()
    report.write_bytes(good.replace(b"hello", b"hollo"))
    assert "changed on disk" in ran_once.reasons(CHAIN, "second")
    assert ran_once.ran(CHAIN) == ["second"]
    assert report.read_bytes() == good
    assert list((ran_once.store.root / "damaged").iterdir()), "what was there is kept aside"


def test_final_corrupt(ran_once):
    report = ran_once.output(ran_once.run(CHAIN), "last") / "report.json"
    report.unlink()
    assert "is missing" in ran_once.reasons(CHAIN, "last")
    assert ran_once.ran(CHAIN) == ["last"]


def test_bit_rot_is_found_by_verify(ran_once):
    report = ran_once.output(ran_once.run(CHAIN), "last") / "report.json"
    status = report.stat()
    report.write_bytes(report.read_bytes().replace(b"hello", b"hollo"))
    os.utime(report, ns=(status.st_atime_ns, status.st_mtime_ns))
    manifest = ran_once.run(CHAIN).manifests["last"]
    assert ran_once.store.damage(manifest) is None, "metadata says nothing"
    assert "changed on disk" in str(ran_once.store.damage(manifest, read=True))


def test_whitespace_and_comments_of_the_pipeline(ran_once):
    text = "# a comment\n" + CHAIN.replace(
        "{path: input.txt, characters: 5}", "{ characters:  5,\n     path: 'input.txt' }"
    )
    assert ran_once.ran(text) == []


def test_there_and_back(ran_once):
    Path("input.txt").write_text("other world")
    assert ran_once.ran(CHAIN) == ["first", "second", "last"]
    Path("input.txt").write_text("hello world")
    assert ran_once.ran(CHAIN) == []


def test_moved_input_of_the_same_content(ran_once):
    Path("input.txt").rename("elsewhere.txt")
    assert ran_once.ran(CHAIN, "first.path=elsewhere.txt") == []


def test_placement_is_not_identity(ran_once):
    assert ran_once.ran(CHAIN, "last.resources.cpus=2", "last.retries=3", "last.timeout=1h") == []


def test_parameter_of_one_stage(ran_once):
    assert ran_once.reasons(CHAIN, "first", "first.characters=4") == "params.characters 5 → 4"
    assert ran_once.ran(CHAIN, "first.characters=4") == ["first", "second", "last"]


def test_explicit_default_is_the_same(ran_once):
    assert ran_once.ran(CHAIN.replace(", characters: 5", "")) == []


def test_execution_and_cosmetic_parameters(bench):
    text = "name: x\nstages:\n  a: {uses: 'tests.toy:Write'}\n"
    assert bench.ran(text) == ["a"]
    assert bench.ran(text, "a.workers=4", "a.label=other") == []
    assert bench.reasons(text, "a", "a.scale=2") == "params.scale 1.0 → 2.0"


def test_seed(bench):
    text = "name: x\nstages:\n  a: {uses: 'tests.toy:Write'}\n"
    bench.ran(text)
    assert bench.reasons(text, "a", "seed=1") == "seed 0 → 1"
    assert bench.ran(text, "a.seed=1") == ["a"]


@pytest.fixture
def own_module(bench, monkeypatch):
    """A user's own stage with a helper module, beside the pipeline."""
    package = bench.directory / "mine"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "helper.py").write_text("def shout(text):\n    return text.upper()\n\n\ndef other():\n    return 1\n")
    (package / "stage.py").write_text(
        "from mine import helper\nfrom tests.toy import Write\n\n\n"
        "class Shout(Write):\n    '''Shouts.'''\n\n    def run(self, context):\n"
        "        self.write(context, helper.shout(self.params.text))\n"
    )
    monkeypatch.syspath_prepend(str(bench.directory))
    yield package
    for name in [name for name in sys.modules if name.split(".")[0] == "mine"]:
        del sys.modules[name]


OWN = "name: own\nstages:\n  a: {uses: 'mine.stage:Shout'}\n"


def edit(file: Path, old: str, new: str) -> None:
    assert old in file.read_text()
    file.write_text(file.read_text().replace(old, new))


def test_helper_edit_reruns_and_names_the_function(bench, own_module, fresh_code):
    assert bench.ran(OWN) == ["a"]
    edit(own_module / "helper.py", "text.upper()", "text.title()")
    fresh_code()
    assert bench.reasons(OWN, "a") == "code: mine/helper.py shout changed"


def test_edits_that_cannot_matter_do_not_rerun(bench, own_module, fresh_code):
    assert bench.ran(OWN) == ["a"]
    edit(own_module / "helper.py", "def shout(text):\n", 'def shout(text: str) -> str:\n    """Loud."""  # very\n\n')
    edit(own_module / "helper.py", "return 1", "return 2")
    edit(own_module / "stage.py", "'''Shouts.'''", "'''Shouts loudly.'''")
    fresh_code()
    assert bench.ran(OWN) == []


def test_kill_9_in_the_middle(bench, tmp_path):
    """The driver dies while a stage runs: nothing partial is accepted, nothing needs unlocking, nothing is redone."""
    text = """\
name: killed
stages:
  a: {uses: "tests.toy:Write"}
  b: {uses: "tests.toy:Fail", with: {how: kill, until_attempt: 2}, inputs: {text: a}}
  c: {uses: "tests.toy:Copy", inputs: {text: b}}
"""
    (tmp_path / "p.yaml").write_text(text)
    command = [sys.executable, "-m", "pipelines", "run", "p.yaml", "--inline", "--no-track", "--store", "store"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    first = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True)
    assert first.returncode == -9
    second = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert second.returncode == 0, second.stderr
    result = bench.run(text)
    assert set(result.states.values()) == {"cached"}
    assert bench.executions() == ["Write:hello", "Fail:at last", "Copy:at last"]


def test_concurrent_publication_of_one_key_keeps_the_first(ran_once):
    result = ran_once.run(CHAIN)
    manifest = result.manifests["last"]
    store = open_store(ran_once.store.location)
    workspace = store.workspace(manifest.key)
    (workspace / "text").mkdir()
    (workspace / "text" / "report.json").write_text(json.dumps({"late": True}))
    from tests.toy import Copy

    adopted = store.publish(manifest, Copy.outputs, workspace)
    assert adopted == manifest
    assert not workspace.exists()
    assert "hello" in (ran_once.output(result, "last") / "report.json").read_text()


def test_a_dead_run_is_closed_by_the_next(bench):
    text = "name: x\nstages:\n  a: {uses: 'tests.toy:Write'}\n"
    first = bench.run(text)
    directory = bench.store.run_directory(first.run)
    lines = (directory / "journal.jsonl").read_text().splitlines(keepends=True)
    (directory / "journal.jsonl").write_text("".join(lines[:-1]))
    (directory / "open").write_text(dead(first.run).to_json())
    (bench.store.root / "work" / first.run / "half").mkdir(parents=True)
    bench.run(text)
    assert json.loads((directory / "journal.jsonl").read_text().splitlines()[-1])["state"] == "cancelled"
    assert not (directory / "open").exists()
    assert list((bench.store.root / "work").iterdir()) == []


def test_a_run_that_died_before_it_began_is_none(bench):
    text = "name: x\nstages:\n  a: {uses: 'tests.toy:Write'}\n"
    directory = bench.store.run_directory("19990101-early")
    directory.mkdir(parents=True)
    (directory / "journal.jsonl").write_text('{"time": 1.0, "event": "run-st')
    (directory / "open").write_text(dead("19990101-early").to_json())
    run = bench.run(text).run
    assert not (directory / "open").exists()
    assert list_runs(bench.store.root) == [run]


def test_a_journal_without_its_beginning_is_told_as_far_as_it_goes(bench, capsys):
    run = bench.run("name: x\nstages:\n  a: {uses: 'tests.toy:Write'}\n").run
    journal = bench.store.run_directory(run) / "journal.jsonl"
    journal.write_text("".join(journal.read_text().splitlines(keepends=True)[1:]))
    other = bench.run("name: x\nstages:\n  a: {uses: 'tests.toy:Write', with: {text: other}}\n").run
    show_status(bench.store, run, as_json=False)
    assert f"{run}: done" in capsys.readouterr().out
    show_status(bench.store, run, as_json=True)
    assert json.loads(capsys.readouterr().out)["run"] == run
    show_comparison(bench.store, [run, other], everything=True, as_json=True)
    told = json.loads(capsys.readouterr().out)["runs"][0]
    assert (told["run"], told["pipeline"], told["state"]) == (run, "", "done")


def test_a_run_that_ends_while_one_looks_has_not_died(bench, monkeypatch):
    run = bench.run("name: x\nstages:\n  a: {uses: 'tests.toy:Write'}\n").run
    journal = bench.store.run_directory(run) / "journal.jsonl"
    whole, real = journal.read_text(), bench.store.death_of
    journal.write_text("".join(whole.splitlines(keepends=True)[:-1]))

    def end_now(name):
        journal.write_text(whole)
        return real(name)

    monkeypatch.setattr(bench.store, "death_of", end_now)
    assert read_run(bench.store, run).state == "done"


def test_work_that_waits_its_turn_is_neither_told_as_started_nor_kept_from_other_runs(bench):
    fan = "name: fan\nstages:\n" + "".join(
        f'  s{number}: {{uses: "tests.toy:Write", with: {{text: "{number}"}}}}\n' for number in range(4)
    )
    result = bench.run(fan)
    events = [json.loads(line) for line in (bench.store.run_directory(result.run) / "journal.jsonl").open()]
    told = [(each["event"], each["stage"]) for each in events if each["event"] in ("stage-started", "stage-finished")]
    assert told == [(f"stage-{what}", f"s{number}") for number in range(4) for what in ("started", "finished")]
