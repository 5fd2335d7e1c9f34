"""From file to pipeline: every problem at once, with place and nearest name."""

import random
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.spec.document import Document
from pipelines.spec.load import parse
from pipelines.spec.problems import SpecError
from stages.errors import UserError

GOOD = """\
name: demo
seed: 3
params: {text: abc, times: 2}
stages:
  a:
    uses: tests.toy:Write
    with: {text: "${params.text}", repeat: "${params.times}", scale: 1}
  c:
    uses: tests.toy:Write
    matrix: {repeat: [1, 2], seed: [0, 1]}
  sweep:
    uses: tests.toy:Copy
    matrix: {of: [a, b]}
    inputs: {text: "${matrix.of}"}
  b:
    uses: tests.toy:Copy
    inputs: {text: a.text}
    needs: [c]
    retries: 2
    timeout: 1h30m
    resources: {cpus: 0.5, memory: 1GiB}
    expect: {length: ">= 3"}
  d: {uses: "tests.toy:Join", inputs: {texts: c, last: b}}
"""


def load(text, *overrides):
    return parse(Document("f.yaml", text), overrides)


def problems(text, *overrides):
    with pytest.raises(SpecError) as caught:
        load(text, *overrides)
    return str(caught.value)


def test_a_good_file():
    pipeline = load(GOOD)
    a, b, d = (pipeline.stages[name] for name in "abd")
    assert (a.params.text, a.params.repeat, a.params.scale, a.seed) == ("abc", 2, 1.0, 3)
    assert (b.timeout_seconds, b.retries, b.resources.memory_bytes) == (5400, 2, 1 << 30)
    assert str(b.expect[0]) == "length >= 3"
    arms = [name for name in pipeline.stages if name.startswith("c[")]
    assert [(pipeline.stages[arm].params.repeat, pipeline.stages[arm].seed) for arm in arms] == [
        (1, 0),
        (1, 1),
        (2, 0),
        (2, 1),
    ]
    assert [reference.stage for reference in d.inputs["texts"]] == arms
    assert pipeline.stages["sweep[of=b]"].upstream == ("b",)
    order = list(pipeline.stages)
    assert all(order.index(up) < order.index(name) for name, spec in pipeline.stages.items() for up in spec.upstream)
    assert pipeline.downstream("a") == {"b", "d", "sweep[of=a]", "sweep[of=b]"}
    assert len({spec.slug for spec in pipeline.stages.values()}) == len(pipeline.stages)


def test_one_arm_of_a_matrix_can_be_named():
    text = GOOD.replace("{texts: c, last: b}", "{texts: b, last: 'c[repeat=2,seed=1].text'}")
    assert load(text).stages["d"].inputs["last"][0].stage == "c[repeat=2,seed=1]"


BAD = {
    "unknown key": ("seed: 3", "sed: 3", "unknown key 'sed'", "did you mean 'seed'?"),
    "unknown stage key": ("    retries: 2", "    retrys: 2", "unknown key 'retrys'", "did you mean 'retries'?"),
    "unknown method": (
        "uses: tests.toy:Copy\n    inputs",
        "uses: quantize.rtm\n    inputs",
        "unknown method",
        "quantize.rtn",
    ),
    "unknown class": ("tests.toy:Join", "tests.toy:Joint", "no stage 'Joint'", "Join"),
    "unknown module": ("tests.toy:Join", "tests.toi:Join", "no module 'tests.toi'", "importable"),
    "no class": ("tests.toy:Join", ":Join", "is not MODULE:CLASS", "my_package.my_module:MyStage"),
    "unknown parameter": ('text: "${', 'txt: "${', "unknown parameter 'txt'", "did you mean 'text'?"),
    "wrong type": ('"${params.times}"', '"two"', "parameter 'repeat'", "found 'two'"),
    "number as text": ('"${params.times}"', "'2'", "parameter 'repeat'", "found '2'"),
    "out of bounds": ('"${params.times}"', "0", "greater than or equal to 1", "found 0"),
    "unknown stage": ("text: a.text", "text: aa.text", "unknown stage 'aa'", "did you mean 'a'?"),
    "unknown output": ("text: a.text", "text: a.txt", "no output 'txt'", "did you mean 'text'?"),
    "unknown input": (
        "inputs: {text: a.text}",
        "inputs: {texd: a.text}",
        "unknown input 'texd'",
        "did you mean 'text'?",
    ),
    "missing input": ("    inputs: {text: a.text}\n", "", "missing input 'text'", "write text: STAGE"),
    "many for one": ("text: a.text", "text: c", "takes one report, found 4", "name one of: c[repeat=1,seed=0]"),
    "unknown need": ("needs: [c]", "needs: [cc]", "unknown stage 'cc' in needs", "did you mean 'c'?"),
    "bad duration": ("timeout: 1h30m", "timeout: 1 hour", "is not a duration", "15m"),
    "bad size": ("memory: 1GiB", "memory: 1 gig", "is not a size", "4GiB"),
    "bad gate": ('">= 3"', '"more than 3"', "is not a gate", "'< 1.5'"),
    "gate on no stage": ('">= 3"', '">= 2 * ${aa.length}"', "unknown stage 'aa' in a gate", "did you mean 'a'?"),
    "gate on no metric": ("length: ", "lenght: ", "Copy reports no metric 'lenght'", "did you mean 'length'?"),
    "gate on no metric of another": ('">= 3"', '">= ${a.lenght}"', "Write reports no metric", "'length'"),
    "gate on itself": ('">= 3"', '">= ${b.length}"', "b → b", ""),
    "undefined reference": ("${params.text}", "${params.txt}", "no params named 'txt'", "did you mean 'text'?"),
    "unknown scope": ("${params.text}", "${param.text}", "unknown reference", "params.NAME"),
    "unclosed reference": ("${params.text}", "${params.text", "not closed", "${params.NAME}"),
    "negative retries": ("retries: 2", "retries: -1", "at least 0", "found -1"),
    "workers": ("cpus: 0.5", "workers: 2", "runs on one worker", "found 2"),
    "escaping name": ("name: demo", "name: ../../etc", "`name` must be", "../../etc"),
    "escaping stage": ("  d: {uses", "  ../d: {uses", "stage's name must be", "../d"),
    "matrix of mappings": ("matrix: {of: [a, b]}", "matrix: {of: {x: 1}}", "matrix axis is a list", ""),
    "equal arms": ("matrix: {of: [a, b]}", "matrix: {of: [a, a]}", "two arms", "sweep[of=a]"),
    "stage of text": (
        '  d: {uses: "tests.toy:Join", inputs: {texts: c, last: b}}',
        "  d: join",
        "a stage is a mapping",
        "",
    ),
}


@pytest.mark.parametrize(("old", "new", "message", "hint"), BAD.values(), ids=BAD)
def test_each_mistake_is_told_with_line_and_way_out(old, new, message, hint):
    assert old in GOOD
    text = GOOD.replace(old, new, 1)
    told = problems(text)
    assert message in told
    assert hint in told
    changed = next(
        number
        for number, lines in enumerate(zip(GOOD.split("\n"), text.split("\n"), strict=False), 1)
        if lines[0] != lines[1]
    )
    lines = [int(line.split(":")[1]) for line in told.split("\n") if line.startswith("f.yaml:")]
    assert any(abs(line - changed) <= 4 for line in lines), told


@pytest.mark.parametrize("wrong", ['{uses: "tests.toy:Write", matrix: {repeat: 3}}', "write"])
def test_what_refers_to_a_stage_that_is_wrong_is_not_told_as_well(wrong):
    told = problems(
        f"name: x\nstages:\n  w: {wrong}\n"
        '  a: {uses: "tests.toy:Copy", inputs: {text: w}}\n'
        '  b: {uses: "tests.toy:Copy", inputs: {text: "w[repeat=1]"}, needs: ["w[repeat=1]", w]}\n'
        '  c: {uses: "tests.toy:Write", expect: {length: "> ${w.length}"}}\n'
    )
    assert "1 problem in f.yaml" in told


def test_mistyped_input_names_what_fits():
    text = """\
name: x
stages:
  teacher: {uses: source.model, with: {model: ./m}}
  check: {uses: evaluate.distance, inputs: {parent: teacher.report, child: teacher, data: teacher}}
"""
    told = problems(text)
    assert "input 'parent' takes a model, teacher.report is a report" in told
    assert "input 'data' takes a dataset of tokens, teacher.model is a model" in told


def test_parameters_that_do_not_fit_each_other_are_told_without_a_name():
    told = problems(
        "name: x\nstages:\n"
        "  teacher: {uses: source.model, with: {model: ./m}}\n"
        "  text: {uses: source.dataset, with: {dataset: ./d}}\n"
        "  data: {uses: data.prepare, inputs: {text: text, model: teacher}}\n"
        "  student:\n    uses: distill.logits\n    inputs: {teacher: teacher, data: data.train}\n"
        "    with: {kl_weight: 0, ce_weight: 0}\n"
    )
    assert "f.yaml:9:11: parameters that do not fit each other: kl_weight and ce_weight are both 0" in told
    assert "found" not in told


def test_all_problems_are_told_at_once_in_order():
    text = GOOD.replace("seed: 3", "sed: 3").replace("timeout: 1h30m", "timeout: soon").replace("last: b", "last: bb")
    told = problems(text)
    assert "3 problems in f.yaml; nothing was run" in told
    assert told.index("sed") < told.index("soon") < told.index("bb")


def test_a_cycle_is_told_with_its_whole_path():
    text = "name: x\nstages:\n" + "".join(
        f"  {name}: {{uses: 'tests.toy:Copy', inputs: {{text: {up}}}}}\n" for name, up in ("ab", "bc", "ca")
    )
    told = problems(text)
    assert "a → b → c → a" in told.replace("b → c → a → b", "a → b → c → a").replace("c → a → b → c", "a → b → c → a")
    assert "f.yaml:" in told


def test_overrides():
    pipeline = load(GOOD, "params.text=xyz", "b.resources.cpus=2", "a.repeat=7", "d.retries=1", "seed=9")
    assert (pipeline.stages["a"].params.text, pipeline.stages["a"].params.repeat) == ("xyz", 7)
    assert (pipeline.stages["b"].resources.cpus, pipeline.stages["d"].retries, pipeline.seed) == (2, 1, 9)


@pytest.mark.parametrize("text", ["params.txt=1", "nothing=1", "a", "=3", "stages=3", "params=3", "a=3"])
def test_an_override_of_nothing_is_refused(text):
    with pytest.raises(UserError, match="--set"):
        load(GOOD, text)


AXES = """\
name: x
stages:
  a: {uses: "tests.toy:Write"}
  direct: {uses: "tests.toy:Write", matrix: {repeat: [1, 2], seed: [0, 1]}}
  named: {uses: "tests.toy:Write", with: {text: "t${matrix.of}", repeat: 3}, matrix: {of: [1, 2]}}
  twice: {uses: "tests.toy:Copy", with: {mark: "${matrix.of}"}, inputs: {text: "${matrix.of}"}, matrix: {of: [a]}}
"""


@pytest.mark.parametrize(
    ("text", "axis"),
    [
        ("direct.repeat=5", "direct.matrix.repeat"),
        ("direct.with.repeat=5", "direct.matrix.repeat"),
        ("direct.seed=5", "direct.matrix.seed"),
        ("named.text=constant", "named.matrix.of"),
        ("named.with={repeat: 4}", "named.matrix.of"),
    ],
)
def test_an_override_of_what_a_matrix_gives_names_the_axis(text, axis):
    with pytest.raises(UserError, match=rf"--set {re.escape(text)}: .* is given by its matrix, axis") as caught:
        load(AXES, text)
    assert caught.value.fix == f"set the axis: --set '{axis}=[VALUE, …]'"
    assert load(AXES, f"{axis}=[1, 2]"), "the fix works"


@pytest.mark.parametrize("text", ["direct[repeat=1,seed=0].text=5", "direct[repeat=1].text=5"])
def test_an_override_of_one_arm_says_how_to_set_all_or_the_axis(text):
    with pytest.raises(UserError, match="an arm of a matrix has no values of its own") as caught:
        load(AXES, text)
    assert "--set direct.NAME=VALUE" in caught.value.fix
    assert "--set 'direct.matrix.AXIS=[VALUE, …]'" in caught.value.fix


def test_overrides_of_a_stage_with_a_matrix_that_work():
    stages = load(AXES, "direct.matrix.repeat=[7]", "direct.text=z", "named.text=u${matrix.of}", "twice.mark=w").stages
    assert {name for name in stages if name.startswith("direct")} == {
        "direct[repeat=7,seed=0]",
        "direct[repeat=7,seed=1]",
    }
    assert {stages[f"direct[repeat=7,seed={seed}]"].params.text for seed in (0, 1)} == {"z"}
    assert [stages[f"named[of={of}]"].params.text for of in (1, 2)] == ["u1", "u2"]
    assert stages["twice[of=a]"].params.mark == "w", "the axis still says what is read"


def test_an_override_through_an_alias_changes_one_stage():
    text = """\
name: x
stages:
  a: &a {uses: "tests.toy:Write", with: {text: one}}
  b: *a
"""
    pipeline = load(text, "b.text=two")
    assert [pipeline.stages[name].params.text for name in "ab"] == ["one", "two"]


def test_a_mistake_in_an_override_says_so():
    assert "--set" in problems(GOOD, "a.repeat=many")


@given(st.randoms(use_true_random=False), st.integers(1, 6))
@settings(max_examples=400, deadline=None)
def test_mutated_files_give_a_pipeline_or_clear_problems(rng: random.Random, edits: int):
    text = GOOD
    for _ in range(edits):
        at = rng.randrange(len(text) + 1)
        cut = rng.choice([0, 0, 1, 3, 12])
        text = (
            text[:at]
            + rng.choice(["", "{", "]", ": ", "\n", "- ", "x", "${", "'", "0", "*a", "&a ", "!!int "])
            + text[at + cut :]
        )
    try:
        load(text)
    except UserError as error:
        assert str(error)


@given(st.integers(1, 40), st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None)
def test_any_dag_is_ordered_and_any_cycle_is_found(count, rng: random.Random):
    names = [f"s{index}" for index in range(count)]
    edges = {name: rng.sample(names[:index], min(index, rng.randrange(3))) for index, name in enumerate(names)}
    lines = [f"  {name}: {{uses: 'tests.toy:Write', needs: [{', '.join(edges[name])}]}}" for name in names]
    rng.shuffle(lines)
    order = list(load("name: x\nstages:\n" + "\n".join(lines)).stages)
    assert sorted(order) == sorted(names)
    assert all(order.index(up) < order.index(name) for name in names for up in edges[name])


def test_a_module_that_cannot_be_imported_is_told(tmp_path, monkeypatch):
    (tmp_path / "broken_stage.py").write_text("def x(:\n")
    (tmp_path / "failing_stage.py").write_text("raise RuntimeError('no')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    told = problems(GOOD.replace("tests.toy:Join", "broken_stage:X").replace("tests.toy:Copy", "failing_stage:X", 1))
    assert "importing broken_stage fails: SyntaxError" in told
    assert "importing failing_stage fails: RuntimeError: no" in told
