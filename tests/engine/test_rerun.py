"""Running part of a pipeline, running it again, and going on with a run: which stages execute, on which inputs."""

import json
import shutil
from pathlib import Path

import pytest

from pipelines.cli.rerun import Again, rerun_run, resume_run
from pipelines.cli.session import RunOptions, run_pipeline
from pipelines.lineage.mirror import STATUS
from pipelines.lineage.view import REUSED
from pipelines.planning.plan import make_plan
from pipelines.planning.selection import Selection, choose
from pipelines.running.journal import Journal
from pipelines.running.origin import RunRequest
from pipelines.running.result import GOOD
from pipelines.spec.document import Document
from pipelines.spec.load import load, parse
from stages.errors import UserError
from tests.engine.conftest import INLINE, Bench

CHAIN = """\
name: chain
stages:
  a: {uses: "tests.toy:Write", with: {text: hello}}
  b: {uses: "tests.toy:Copy", inputs: {text: a}, with: {mark: "-b"}}
  c: {uses: "tests.toy:Copy", inputs: {text: b}, with: {mark: "-c"}}
  arms: {uses: "tests.toy:Copy", matrix: {mark: [x, y]}, inputs: {text: b}}
  last: {uses: "tests.toy:Join", inputs: {texts: arms, last: c}}
"""
ARMS = ["arms[mark=x]", "arms[mark=y]"]


@pytest.fixture
def chain(bench: Bench) -> Bench:
    Path("p.yaml").write_text(CHAIN)
    return bench


def run(bench: Bench, *overrides: str, options: RunOptions = INLINE, **selection):
    asked = Selection(**{name: tuple(value.split()) for name, value in selection.items()})
    return run_pipeline(load(Path("p.yaml"), overrides), bench.store, options, asked)


def rerun(bench: Bench, name: str, *overrides: str, **selection):
    asked = Selection(**{name: tuple(value.split()) for name, value in selection.items()})
    return rerun_run(Again(bench.store, name, view="quiet"), asked, overrides)[1]


def resume(bench: Bench, name: str = "latest"):
    return resume_run(Again(bench.store, name, view="quiet"))[1]


def of(result, state: str) -> list[str]:
    return [name for name, found in result.states.items() if found == state]


def text(bench: Bench, result, stage: str) -> str:
    return json.loads((bench.output(result, stage) / "report.json").read_text())["details"]["text"]


def started(bench: Bench, result) -> dict:
    return events(bench, result)[0]


def events(bench: Bench, result) -> list[dict]:
    return Journal(bench.store.run_directory(result.run) / "journal.jsonl").read()


@pytest.mark.parametrize(
    ("selection", "chosen", "above"),
    [
        ({"only": "b"}, "b", "a"),
        ({"only": "arms"}, " ".join(ARMS), "a b"),
        ({"only": ARMS[1]}, ARMS[1], "a b"),
        ({"from_": "c"}, "c last", f"a b {' '.join(ARMS)}"),
        ({"until": "c"}, "a b c", ""),
        ({"from_": "b", "until": "c"}, "b c", "a"),
        ({"only": "a", "from_": "last"}, "a last", f"b c {' '.join(ARMS)}"),
        ({}, f"a b c last {' '.join(ARMS)}", ""),
    ],
)
def test_what_a_selection_means(selection, chosen, above):
    found = choose(parse(Document("p", CHAIN)), Selection(**{k: tuple(v.split()) for k, v in selection.items()}))
    assert found.chosen == set(chosen.split())
    assert found.above == set(above.split())


@pytest.mark.parametrize(
    ("selection", "message"),
    [
        ({"only": "bb"}, "did you mean 'b'?"),
        ({"from_": "arms[mark=z]"}, "did you mean 'arms[mark=y]'?"),
        ({"from_": "last", "until": "a"}, "--from last --until a chooses no stage"),
        ({"only": "last", "until": "a"}, "--until names a stage at or below those of --only"),
        ({"only": "a", "force": "b"}, "--force b: this stage is not chosen"),
    ],
)
def test_a_selection_that_means_nothing(selection, message):
    with pytest.raises(UserError) as told:
        choose(parse(Document("p", CHAIN)), Selection(**{k: tuple(v.split()) for k, v in selection.items()}))
    assert message in str(told.value)


def test_only_takes_what_is_above_from_the_cache_and_leaves_the_rest(chain):
    run(chain)
    result = run(chain, "b.mark=Z", only="b")
    assert result.ok
    assert (of(result, "cached"), of(result, "done")) == (["a"], ["b"])
    assert set(of(result, "left")) == {"c", *ARMS, "last"}
    assert text(chain, result, "b") == "helloZ"


def test_only_on_a_stale_input_keeps_it_and_says_so(chain):
    first = run(chain)
    plan = make_plan(load(Path("p.yaml"), ("b.mark=other", "c.mark=Z")), chain.store, Selection(only=("c",)))
    assert plan.steps["b"].state == "kept"
    assert plan.steps["b"].reasons == (
        f"stale, and the result of run {first.run} is taken as it is",
        "params.mark '-b' → 'other'",
    )
    result = run(chain, "b.mark=other", "c.mark=Z", only="c")
    assert result.states["b"] == "kept"
    assert text(chain, result, "c") == "hello-bZ"
    end = next(event for event in events(chain, result) if event.get("stage") == "c" and "outputs" in event)
    assert [entry["producer"] for entry in end["inputs"]] == [first.run]
    after = run(chain)
    assert set(after.states.values()) == {"cached"}, "what was kept did not become what b had last"


def test_only_without_anything_above_names_what_to_run(chain):
    with pytest.raises(UserError) as told:
        run(chain, only="c")
    assert "stage c reads what b makes, which is not chosen, and it has no result yet" in str(told.value)
    assert "--only b, or --from b" in str(told.value)
    assert chain.executions() == []


def test_a_stage_that_is_only_waited_for_may_be_left(bench):
    Path("p.yaml").write_text(
        "name: x\nstages:\n  a: {uses: 'tests.toy:Write'}\n  b: {uses: 'tests.toy:Write', needs: a, with: {text: b}}\n"
    )
    result = run(bench, only="b")
    assert result.states == {"a": "left", "b": "done"}


def test_until_stops_there_and_from_goes_on(chain):
    result = run(chain, until="b")
    assert of(result, "done") == ["a", "b"]
    with pytest.raises(UserError, match=r"choose it as well: --only arms\[mark=x\]"):
        run(chain, from_="c")
    result = run(chain, from_="c arms")
    assert set(of(result, "done")) == {"c", *ARMS, "last"}


def test_force_makes_anew_keeps_the_old_and_stops_where_nothing_changed(chain):
    first = run(chain)
    result = run(chain, force="b")
    assert of(result, "done") == ["b"]
    assert result.manifests["b"].run == result.run != first.run
    kept = list((chain.store.root / "replaced").iterdir())
    assert json.loads((kept[0] / "manifest.json").read_text())["run"] == first.run
    assert set(run(chain).states.values()) == {"cached"}


def test_a_forced_stage_that_fails_loses_nothing(bench):
    Path("p.yaml").write_text("name: x\nstages:\n  a: {uses: 'tests.toy:Fail', with: {until_attempt: 2}, retries: 1}\n")
    first = run(bench)
    again = run(bench, "a.retries=0", force="a")
    assert again.states == {"a": "failed"}
    assert run(bench).manifests["a"].run == first.run


def test_rerun_of_one_stage_with_another_parameter(chain):
    first = run(chain)
    result = rerun(chain, first.run, "c.mark=Z", only="c")
    assert of(result, "done") == ["c"]
    assert text(chain, result, "c") == "hello-bZ"
    assert started(chain, result)["rerun_of"] == first.run
    assert started(chain, result)["selection"]["only"] == ["c"]
    assert started(chain, result)["overrides"] == ["c.mark=Z"]


def test_rerun_reads_the_run_it_names_not_what_came_later(chain):
    first = run(chain)
    run(chain, "a.text=other")
    Path("p.yaml").write_text(CHAIN.replace("hello", "third"))
    run(chain)
    result = rerun(chain, first.run, from_="c")
    assert set(of(result, "cached")) == {"a", "b", "c", *ARMS, "last"}, "all of it is there already"
    result = rerun(chain, first.run[:-1], "c.mark=Z", from_="c")
    assert set(of(result, "done")) == {"c", "last"}
    assert text(chain, result, "last") == "hello-bx+hello-by+hello-bZ"


def test_rerun_of_a_rerun_goes_back_to_the_first(chain):
    first = run(chain)
    second = rerun(chain, first.run, "c.mark=Z", only="c")
    run(chain, "a.text=other")
    third = rerun(chain, second.run, from_="last")
    assert text(chain, third, "last") == "hello-bx+hello-by+hello-bZ"
    assert third.states["c"] == "cached"


def test_rerun_keeps_what_an_edit_of_the_source_made_stale(chain):
    Path("input.txt").write_text("first")
    Path("p.yaml").write_text(
        "name: x\nstages:\n  a: {uses: 'tests.toy:ReadFile', with: {path: input.txt}}\n"
        "  b: {uses: 'tests.toy:Copy', inputs: {text: a}}\n"
    )
    first = run(chain)
    Path("input.txt").write_text("second")
    run(chain)
    result = rerun(chain, first.run, "b.mark=Z", only="b")
    assert result.states == {"a": "kept", "b": "done"}
    assert text(chain, result, "b") == "firstZ"
    assert "made another since" in result.stale["a"]
    Path("input.txt").unlink()
    result = rerun(chain, first.run, "b.mark=Y", only="b")
    assert text(chain, result, "b") == "firstY"


def test_resume_goes_on_with_the_same_file_overrides_and_selection(bench, capsys):
    file = Path("p.yaml")
    file.write_text(
        "name: x\nstages:\n  a: {uses: 'tests.toy:Write'}\n"
        "  b: {uses: 'tests.toy:Fail', with: {until_attempt: 2}, inputs: {text: a}}\n"
        "  c: {uses: 'tests.toy:Copy', inputs: {text: b}}\n  d: {uses: 'tests.toy:Write', with: {text: d}}\n"
    )
    failed = run(bench, "c.mark=Z", until="c", force="a")
    assert failed.states == {"a": "done", "b": "failed", "c": "skipped", "d": "left"}
    file.unlink()
    result = resume(bench)
    assert "p.yaml is gone since" in capsys.readouterr().err
    assert result.states == {"a": "cached", "b": "done", "c": "done", "d": "left"}, "what was forced is not done twice"
    assert text(bench, result, "c") == "at lastZ"
    assert started(bench, result)["resumes"] == failed.run
    assert started(bench, result)["overrides"] == ["c.mark=Z"]
    assert set(resume(bench).states.values()) == {"cached", "left"}


def test_resume_of_a_rerun_keeps_its_inputs(bench):
    file = Path("p.yaml")
    file.write_text(
        "name: x\nstages:\n  a: {uses: 'tests.toy:Write', with: {text: one}}\n"
        "  b: {uses: 'tests.toy:Fail', inputs: {text: a}, with: {until_attempt: 1}}\n"
    )
    first = run(bench)
    failed = rerun(bench, first.run, "b.until_attempt=2", only="b")
    assert failed.states["b"] == "failed"
    run(bench, "a.text=two")
    result = resume(bench, failed.run)
    assert result.ok
    assert result.manifests["a"].key == first.manifests["a"].key
    assert started(bench, result)["rerun_of"] == first.run


def test_a_run_without_its_request_says_so(chain):
    result = run(chain)
    (chain.store.run_directory(result.run) / "request.json").unlink()
    with pytest.raises(UserError, match="does not say what it was asked to do"):
        resume(chain)


def test_a_damaged_request_is_told(chain):
    result = run(chain)
    (chain.store.run_directory(result.run) / "request.json").write_text('{"selection": 3}')
    with pytest.raises(UserError, match="this is no request"):
        resume(chain)


def test_the_request_of_a_run_is_read_back(tmp_path):
    request = RunRequest(
        file="p.yaml",
        text="text",
        overrides=("a=1",),
        selection=Selection(only=("b",)),
        rerun_of="one",
        resumes="two",
        directory="/here",
        executor="inline",
        cluster="x",
        track=False,
        fail_fast=True,
    )

    class Place:
        def run_directory(self, run):
            return tmp_path

    request.write(tmp_path)
    assert RunRequest.read(Place(), "any") == request


BRANCHES = """\
name: branches
stages:
  bad: {uses: "tests.toy:Fail"}
  good: {uses: "tests.toy:Write"}
  other: {uses: "tests.toy:Copy", inputs: {text: good}}
"""


def test_keep_going_is_the_default_and_fail_fast_starts_nothing_more(bench):
    Path("p.yaml").write_text(BRANCHES)
    fast = RunOptions("inline", track=False, view="quiet", fail_fast=True)
    result = run(bench, options=fast)
    assert result.states["bad"] == "failed"
    assert result.states["other"] == "skipped"
    assert result.states["good"] == "skipped", "one at a time: it had not been started"
    assert run(bench).states == {"bad": "failed", "good": "done", "other": "done"}


def test_fail_fast_does_not_try_again_what_waits_for_its_next_attempt(bench):
    Path("p.yaml").write_text(BRANCHES.replace('Fail"}', 'Fail"}\n  first: {uses: "tests.toy:Fail", retries: 9}'))
    result = run(bench, options=RunOptions("inline", track=False, view="quiet", fail_fast=True))
    assert sorted(result.states[name] for name in ("bad", "first")) == ["failed", "skipped"]


def test_gates_of_what_is_taken_as_it_is_are_not_judged(bench):
    Path("p.yaml").write_text(
        "name: x\nstages:\n  a: {uses: 'tests.toy:Write'}\n  b: {uses: 'tests.toy:Copy', inputs: {text: a}}\n"
    )
    run(bench)
    assert run(bench, "a.expect={length: '> 99'}", only="b").ok
    assert not run(bench, "a.expect={length: '> 99'}").ok


def test_every_state_of_a_stage_can_be_mirrored():
    assert set(STATUS) >= GOOD | REUSED


def test_a_run_shows_what_was_left(chain):
    from pipelines.lineage.view import RunView

    run(chain)
    result = run(chain, only="b")
    view = RunView()
    for event in events(chain, result):
        view.apply(event)
    assert view.stages["last"].state == "left"
    assert view.stages["b"].state == "cached"


def test_journals_of_left_stages_stay_short(chain):
    run(chain)
    result = run(chain, only="b")
    assert sum(event["event"] == "stage-finished" for event in events(chain, result)) == 2


def test_another_method_s_result_is_not_taken(bench):
    text = "name: x\nstages:\n  a: {uses: 'tests.toy:Write'}\n  b: {uses: 'tests.toy:Copy', inputs: {text: a}}\n"
    Path("p.yaml").write_text(text)
    run(bench)
    Path("p.yaml").write_text(text.replace("Write'}", "Join', inputs: {texts: []}}"))
    with pytest.raises(UserError, match="what it had last was made by tests"):
        run(bench, only="b")


def test_a_result_whose_own_inputs_are_gone_is_still_taken(chain):
    first = run(chain)
    manifest = first.manifests["a"]
    shutil.rmtree(chain.store.directory(manifest.method, manifest.key))
    result = run(chain, "c.mark=Z", only="c")
    assert (result.states["a"], result.states["b"], result.states["c"]) == ("left", "kept", "done")
    assert "not compared with today's: a has no result" in result.stale["b"]
