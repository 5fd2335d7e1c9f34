"""Why a stage runs, how long it may take, whether it ever can, and drift that a person accepts."""

import json
import os
import sys
import time
from pathlib import Path

import pytest

from clusters.capacity import known_capacity
from clusters.profile import Profile
from pipelines.cli.planning import impossible, plan_json
from pipelines.cli.rerun import accept_stage
from pipelines.lineage.records import result_tags
from pipelines.lineage.redact import Redactor
from pipelines.planning import fingerprint as prints
from pipelines.planning.durations import expect
from pipelines.planning.modules import SETTLED_NS, ModuleCache
from pipelines.planning.plan import make_plan
from pipelines.planning.reasons import as_written
from pipelines.spec.document import Document
from pipelines.spec.load import parse
from stages.errors import UserError

PAIR = """\
name: pair
stages:
  corpus: {uses: "tests.toy:Write", with: {text: hello, repeat: 1, scale: 1e-4}}
  copy: {uses: "tests.toy:Copy", inputs: {text: corpus}}
"""


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1e-4, "1e-4"),
        (0.00025, "2.5e-4"),
        (-3e-7, "-3e-7"),
        (0.001, "0.001"),
        (1.0, "1.0"),
        (0.0, "0.0"),
        (1e6, "1e6"),
        (12345678.0, "1.2345678e7"),
        (200_000, "200_000"),
        (512, "512"),
        (True, "true"),
        (None, "null"),
        ("a", "'a'"),
        ([1, 1e-5], "[1, 1e-5]"),
        ({"a": [None]}, "{a: [null]}"),
    ],
)
def test_values_are_shown_as_people_write_them(value, text):
    assert as_written(value) == text


def test_reasons_field_by_field(bench):
    bench.run(PAIR)
    assert bench.reasons(PAIR, "corpus", "corpus.scale=2e-4", "corpus.repeat=2") == (
        "params.repeat 1 → 2; params.scale 1e-4 → 2e-4"
    )
    assert bench.reasons(PAIR.replace("pair", "other"), "copy") == f"from run {bench.run(PAIR).manifests['copy'].run}"
    changed = bench.plan(PAIR, "copy.mark=x", "corpus.text=b").steps["copy"]
    assert changed.state == "unknown"
    assert changed.reasons == ("waits for what corpus will make", "params.mark '' → 'x'"), "what is known is told"
    assert changed.why[1].as_json() == {
        "kind": "parameter",
        "text": "params.mark '' → 'x'",
        "name": "params.mark",
        "after": "x",
    }


def test_a_changed_input_is_named_with_the_stage_that_made_it(bench):
    first = bench.run(PAIR).manifests["corpus"].outputs["text"].digest
    other = '  other: {uses: "tests.toy:Write", with: {text: elsewhere}}\n'
    second = bench.run(f"name: second\nstages:\n{other}").manifests["other"].outputs["text"].digest
    renamed = PAIR.replace("text: corpus}", "text: other}") + other
    assert bench.reasons(renamed, "copy") == f"input text {first[:8]}… → {second[:8]}… (made by other.text)"


def test_a_changed_source_is_named(bench):
    text = "name: x\nstages:\n  a: {uses: 'tests.toy:ReadFile', with: {path: input.txt}}\n"
    Path("input.txt").write_text("one")
    bench.run(text)
    Path("input.txt").write_text("two")
    assert bench.reasons(text, "a").startswith("source file 7692c3ad… → 3fc4ccfe…")


def test_the_arm_of_a_matrix_is_compared_with_itself(bench):
    """A new axis value must not shift the others' pasts."""
    text = "name: x\nstages:\n  a: {uses: 'tests.toy:Write', matrix: {scale: [1, 2]}}\n"
    bench.run(text)
    plan = bench.plan(text.replace("[1, 2]", "[3, 2, 1]"))
    assert [step.reasons[0][:8] for step in plan.steps.values()] == ["new", "from run", "from run"]


def test_expected_durations_are_medians_along_the_longest_path(bench):
    names = ["a", "b", "c"]
    text = "name: x\nstages:\n  a: {uses: 'tests.toy:Write'}\n  b: {uses: 'tests.toy:Copy', inputs: {text: a}}\n"
    text += "  c: {uses: 'tests.toy:Copy', inputs: {text: a}, with: {mark: c}}\n"
    for repeat, seconds in ((1, 10.0), (2, 30.0), (3, 20.0)):
        result = bench.run(text, f"a.repeat={repeat}")
        for name in names:
            manifest = result.manifests[name]
            file = bench.store.directory(manifest.method, manifest.key) / "manifest.json"
            content = json.loads(file.read_text())
            content["evidence"]["seconds"] = seconds * (2 if name == "c" else 1)
            file.write_text(json.dumps(content))
    plan = bench.plan(text, "a.repeat=4")
    expected = expect(plan, bench.store)
    assert expected.stages == {"a": 20.0, "b": 20.0, "c": 40.0}
    assert expected.total_seconds == 60.0
    other = expect(bench.plan(text.replace("  b:", "  new:"), "a.repeat=4"), bench.store)
    assert other.stages["new"] == 25.0, "another stage of the method: all of its times"
    assert expect(bench.plan(text), bench.store).stages == {}, "what is cached takes no time"


def test_a_stage_that_never_ran_has_no_expectation(bench):
    expected = expect(bench.plan(PAIR), bench.store)
    assert expected.unknown == ("corpus", "copy")
    assert expected.total_seconds == 0


def test_what_the_cluster_can_never_give_is_told_without_starting_it(bench):
    plan = bench.plan(PAIR, "corpus.resources.cpus=8", "copy.resources.gpus=3", "copy.resources.memory=9GiB")
    profile = Profile(address="ray://somewhere:1", cpus=4, gpus=2, memory="8GiB", nodes=3)
    told = impossible(plan, profile, "x")
    assert "asks for 8 cpus a worker; the largest node of cluster 'x' has 4" in told["corpus"][0]
    assert "asks for 3 gpus" in told["copy"][0]
    assert impossible(plan, Profile(address="auto"), "y") == {}, "what is not declared is not known"
    here = known_capacity(Profile())
    assert here.node_cpus == os.cpu_count()
    assert 0 < here.node_memory_bytes < 2**60
    content = plan_json(plan, expect(plan, bench.store), told)
    assert [stage["cluster_can"] for stage in content["stages"]] == [False, False]
    assert content["stages"][0]["reasons"] == [{"kind": "new", "text": "new"}]
    json.dumps(content)


@pytest.fixture
def own_stage(bench, monkeypatch):
    package = bench.directory / "drifty"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "helper.py").write_text("def shout(text):\n    return text.upper()\n")
    (package / "stage.py").write_text(
        "from drifty import helper\nfrom tests.toy import Write\n\n\nclass Shout(Write):\n"
        "    def run(self, context):\n        self.write(context, helper.shout(self.params.text))\n"
    )
    monkeypatch.syspath_prepend(str(bench.directory))
    yield package
    for name in [name for name in sys.modules if name.split(".")[0] == "drifty"]:
        del sys.modules[name]


OWN = """\
name: own
stages:
  a: {uses: "drifty.stage:Shout"}
  b: {uses: "tests.toy:Copy", inputs: {text: a}}
"""


def shout(package: Path, body: str) -> None:
    (package / "helper.py").write_text(f"def shout(text):\n    return {body}\n")


def settle(*files: Path) -> None:
    """Make files look as if they had been written long ago, except for their change time."""
    old = time.time_ns() - 10 * SETTLED_NS
    for file in files:
        os.utime(file, ns=(old, old))


def test_accepted_drift_is_a_hit_signed_into_the_lineage(bench, own_stage, fresh_code):
    first = bench.run(OWN)
    shout(own_stage, "text.upper() + ''")
    fresh_code()
    assert bench.reasons(OWN, "a") == "code: drifty/helper.py shout changed"
    told = list(accept_stage(parse(Document("f", OWN)), bench.store, "a", "only an empty string"))
    assert "  drifty/helper.py shout changed" in told
    result = bench.run(OWN)
    assert set(result.states.values()) == {"cached"}, "stages below stay cached too"
    assert result.manifests["a"].key == first.manifests["a"].key
    assert "only an empty string" in bench.reasons(OWN, "a")
    journal = (bench.store.run_directory(result.run) / "journal.jsonl").read_text().splitlines()
    event = next(json.loads(line) for line in journal if '"stage": "a"' in line and "stage-finished" in line)
    assert "changed code accepted by" in result_tags(event, Redactor())["regraft.reason"]
    record = json.loads(next((bench.store.root / "accepted").rglob("*.json")).read_text())
    assert record["of"] == first.manifests["a"].key
    assert record["code_before"] != record["code_after"]
    assert record["who"]
    shout(own_stage, "text.lower()")
    fresh_code()
    assert bench.plan(OWN).steps["a"].state == "run", "a further change is not accepted"


def test_more_than_code_is_not_accepted(bench, own_stage, fresh_code):
    pipeline = parse(Document("f", OWN))
    with pytest.raises(UserError, match="no earlier result"):
        list(accept_stage(pipeline, bench.store, "a", "x"))
    bench.run(OWN)
    with pytest.raises(UserError, match="there is nothing to accept"):
        list(accept_stage(pipeline, bench.store, "a", "x"))
    shout(own_stage, "text.title()")
    fresh_code()
    changed = parse(Document("f", OWN), ("a.text=other", "seed=3"))
    with pytest.raises(UserError) as told:
        list(accept_stage(changed, bench.store, "a", "x"))
    assert "params.text 'hello' → 'other'; seed 0 → 3" in told.value.message
    with pytest.raises(UserError, match="waits for what a will make"):
        list(accept_stage(pipeline, bench.store, "b", "x"))
    with pytest.raises(UserError, match="--reason is empty"):
        list(accept_stage(pipeline, bench.store, "a", " "))
    with pytest.raises(UserError, match="did you mean 'a'"):
        list(accept_stage(pipeline, bench.store, "aa", "x"))
    assert not (bench.store.root / "accepted").exists()


def test_a_damaged_acceptance_accepts_nothing(bench, own_stage, fresh_code):
    bench.run(OWN)
    shout(own_stage, "text.upper() + ''")
    fresh_code()
    list(accept_stage(parse(Document("f", OWN)), bench.store, "a", "x"))
    file = next((bench.store.root / "accepted").rglob("*.json"))
    for content in ("", "[]", '{"version": 1}', file.read_text().replace('"of": "', '"of": "0')):
        file.write_text(content)
        assert bench.plan(OWN).steps["a"].state == "run"


def remembered(bench) -> dict:
    file = bench.store.root / "cache" / "code.json"
    return json.loads(file.read_text())["modules"] if file.exists() else {}


def test_an_edited_helper_is_seen_though_its_parse_is_remembered(bench, own_stage, fresh_code, monkeypatch):
    """Also in the same moment, with the same size and the modification time set back."""
    monkeypatch.setattr("pipelines.planning.modules.SETTLED_NS", -1)
    helper = own_stage / "helper.py"
    assert bench.ran(OWN) == ["a", "b"]
    assert any("drifty.helper" in label for label in remembered(bench))
    for body in ("text.lower()", "text.title()", "text.strip()"):
        before = helper.stat()
        shout(own_stage, body)
        os.utime(helper, ns=(before.st_atime_ns, before.st_mtime_ns))
        assert (helper.stat().st_size, helper.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
        fresh_code()
        assert bench.reasons(OWN, "a") == "code: drifty/helper.py shout changed"


def test_what_was_touched_just_now_is_not_remembered(bench, own_stage, fresh_code):
    """The clock of a file system ticks: two edits within one tick leave the same stamp."""
    bench.run(OWN)
    assert not any("drifty.helper" in label for label in remembered(bench))


def test_remembered_modules_say_the_same_and_nothing_is_parsed_again(bench, monkeypatch, fresh_code):
    monkeypatch.setattr("pipelines.planning.modules.SETTLED_NS", -1)
    bench.run(PAIR)
    fresh = prints.fingerprint("tests.toy:Copy")
    fresh_code()
    prints._sources.remembered = ModuleCache()
    monkeypatch.setattr("pipelines.planning.modules.parse", lambda *_: pytest.fail("a remembered module is parsed"))
    prints.remember_in(bench.store.root / "cache" / "code.json")
    assert prints.fingerprint("tests.toy:Copy") == fresh


@pytest.mark.parametrize("content", ["", "{", "[]", '{"version": 1}', "VERSION-OTHER", "ENTRIES-BROKEN"])
def test_a_damaged_or_foreign_cache_is_made_again(bench, content, monkeypatch, fresh_code):
    monkeypatch.setattr("pipelines.planning.modules.SETTLED_NS", -1)
    bench.run(PAIR)
    file = bench.store.root / "cache" / "code.json"
    good = json.loads(file.read_text())
    if content == "VERSION-OTHER":
        content = json.dumps({**good, "version": "1 another python", "modules": {name: {} for name in good["modules"]}})
    elif content == "ENTRIES-BROKEN":
        broken = {name: {**entry, "module": [1, 2]} for name, entry in good["modules"].items()}
        content = json.dumps({**good, "modules": broken})
    file.write_text(content)
    fresh_code()
    prints._sources.remembered = ModuleCache()
    assert make_plan(parse(Document("f", PAIR)), bench.store).cached
    assert json.loads(file.read_text()) == good


def test_a_module_that_is_not_python_is_told_with_its_line(bench, own_stage, fresh_code):
    (own_stage / "helper.py").write_text("def shout(text):\n    return text.upper(\n")
    with pytest.raises(UserError) as told:
        bench.plan("name: x\nstages:\n  a: {uses: 'tests.toy:Write'}\n") and prints.fingerprint("drifty.stage:Shout")
    assert "helper.py:2" in told.value.where
