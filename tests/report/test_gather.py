"""What the report says of hand-written journals: gather and the table of models, without an engine."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.report.change import change, verdict
from pipelines.report.gather import gather
from pipelines.report.models import model_table, subject
from pipelines.report.render import render
from pipelines.report.values import Link, StageReport
from pipelines.running.journal import Journal
from tests.lineage.journals import Writer, digest, stage
from tests.report.page import read

STAGES = [
    stage("teacher", "source.model"),
    stage("corpus", "data.prepare", "teacher"),
    stage("student", "distill.logits", "teacher", "corpus", api_key="tops3cret-value"),
    stage("int4", "quantize.rtn", "student"),
    stage("ppl[model=teacher]", "evaluate.perplexity", "teacher", "corpus"),
    stage("ppl[model=student]", "evaluate.perplexity", "student", "corpus"),
    stage("speed", "evaluate.speed", "teacher", "student"),
    stage("far", "evaluate.distance", "student", "int4"),
]
RESOLVED = {
    "stages": {
        "int4": {
            "inputs": {"model": "student.model"},
            "expect": {"perplexity_ratio": "< 2", "kl_to_parent": "< 1"},
            "seed": 17,
        },
        "far": {"inputs": {"parent": "student.model", "child": "int4.model"}},
    }
}


@pytest.fixture
def writer(tmp_path):
    return Writer(tmp_path, "r")


def told(writer):
    return gather(Journal(writer.path).read(), {})


def write(writer):
    writer.start(STAGES, resolved=RESOLVED)
    writer.finish("teacher", makes={"model": "model"}, metrics={"parameters": 100.0})
    writer.finish("corpus", reads={"model": "teacher.model"}, makes={"heldout": "dataset"}, metrics={"dropped": 3.0})
    for step, value in ((2, 2.0), (1, 3.0), (2, 1.5)):
        writer.curve("student", step, loss=value)
    reads = {"teacher": "teacher.model", "data": "corpus.heldout"}
    metrics = {"kl_to_parent": 0.25, "teacher_perplexity": 10.0, "perplexity": 13.0}
    writer.finish("student", reads=reads, makes={"model": "model"}, metrics=metrics)
    for name, perplexity in (("teacher", 10.0), ("student", 12.0)):
        reads = {"model": f"{name}.model", "data": "corpus.heldout"}
        metrics = {"perplexity": perplexity, "num_tokens": 9.0, "parameters": 100.0}
        writer.finish(f"ppl[model={name}]", reads=reads, makes={"report": "report"}, metrics=metrics)
    reads = {"model": "student.model", "baseline": "teacher.model"}
    metrics = {"decode_ratio": 1.4, "cache_bytes": 64.0, "cache_bytes_ratio": 0.5, "baseline_cache_bytes": 128.0}
    writer.finish("speed", reads=reads, makes={"report": "report"}, metrics=metrics)


def test_the_fold_of_a_run(writer):
    write(writer)
    writer.finish("int4", "failed", error={"message": "expected kl_to_parent < 1, found 3", "fix": "f", "tail": ""})
    report = told(writer)
    student, int4, far = (next(s for s in report.stages if s.name == n) for n in ("student", "int4", "far"))
    assert report.state == "running"
    assert student.curves == {"loss": ((1, 3.0), (2, 1.5))}, "sorted, and a step taken again counts once"
    assert student.params["api_key"] == "***"
    assert [link.origin for link in student.inputs] == ["teacher.model", "corpus.heldout"]
    assert int4.inputs[0].digest == digest("student.model"), "known though int4 failed"
    assert int4.error == {"message": "expected kl_to_parent < 1, found 3", "fix": "f"}
    assert int4.seed == 17
    assert [gate.holds for gate in int4.gates] == [None, None], "it made nothing that could be measured"
    assert [link.digest for link in far.inputs] == [digest("student.model"), ""]


@pytest.mark.parametrize(
    ("state", "message", "expected"),
    [
        ("done", "", [True, True]),
        ("cached", "", [True, True]),
        ("failed", "expected kl_to_parent < 1, found kl_to_parent = 3", [True, False]),
        ("skipped", "", [None, None]),
    ],
)
def test_gates_hold_or_not_or_were_never_reached(writer, state, message, expected):
    write(writer)
    error = {"message": message, "fix": "", "tail": ""} if message else None
    makes = {} if state == "skipped" else {"model": "model"}
    writer.finish("int4", state, makes=makes, metrics={"perplexity_ratio": 1.1, "kl_to_parent": 3.0}, error=error)
    assert [gate.holds for gate in next(s for s in told(writer).stages if s.name == "int4").gates] == expected


def table_of(writer):
    table = model_table(told(writer).stages)
    columns = [f"{column.metric} {column.by}".strip() for column in table.columns]
    return columns, {row.name: dict(zip(columns, row.cells, strict=True)) for row in table.rows}


def test_models_with_the_figures_of_their_evaluations(writer):
    write(writer)
    columns, rows = table_of(writer)
    assert columns == ["parameters", "bytes", "perplexity", "kl_to_parent", "decode_ratio", "cache_bytes_ratio"]
    assert rows["teacher"] | {"bytes": 0} == dict(zip(columns, [100.0, 0, 10.0, None, None, None], strict=True))
    assert rows["student"] | {"bytes": 0} == dict(zip(columns, [100.0, 0, 12.0, 0.25, 1.4, 0.5], strict=True))


def test_a_maker_s_figure_stays_where_nobody_else_measured_and_stands_apart(writer):
    write(writer)
    reads = {"model": "student.model"}
    writer.finish("int4", reads=reads, makes={"model": "model"}, metrics={"perplexity": 15.0})
    columns, rows = table_of(writer)
    assert "perplexity ppl" in columns
    assert rows["int4"]["perplexity when made"] == 15.0
    assert rows["int4"]["perplexity ppl"] is None


def test_figures_measured_otherwise_do_not_share_a_column(writer):
    stages = [stage("m", "source.model"), *(stage(f"p[n={n}]", "evaluate.perplexity", "m", limit=n) for n in (1, 2))]
    writer.start(stages)
    writer.finish("m", makes={"model": "model"})
    for n in (1, 2):
        writer.finish(f"p[n={n}]", reads={"model": "m.model"}, makes={"r": "report"}, metrics={"perplexity": float(n)})
    columns, rows = table_of(writer)
    assert columns == ["bytes", "perplexity p (1)", "perplexity p (2)"]
    assert rows["m"]["perplexity p (2)"] == 2.0


def test_a_wide_table_is_broken_between_evaluations(writer):
    evaluations = {"tasks": 7, "needles": 3, "speed": 2}
    writer.start([stage("m", "source.model"), *(stage(name, f"evaluate.{name}", "m") for name in evaluations)])
    writer.finish("m", makes={"model": "model"}, metrics={"parameters": 5.0})
    for name, count in evaluations.items():
        metrics = {f"{name}{'abcdefg'[n]}": 0.5 for n in range(count)}
        writer.finish(name, reads={"model": "m.model"}, makes={"r": "report"}, metrics=metrics)
    report = told(writer)
    html = render(report, model_table(report.stages), [], [])
    tables = [part.partition("</thead>")[0] for part in html.split('<table class="models">')[1:]]
    assert [part.count('<th class="number">') for part in tables] == [2, 10, 2]
    assert "needlesc" in tables[1]
    read(html)


def test_whom_a_stage_measures(writer):
    write(writer)
    subjects = {s.name: link.origin if (link := subject(s)) else None for s in told(writer).stages}
    assert subjects["ppl[model=student]"] == "student.model"
    assert subjects["speed"] == "student.model", "the baseline is what it is measured against"
    assert subjects["corpus"] is None, "data is prepared with a model, and is not about it"
    assert subjects["student"] is None


@pytest.mark.parametrize(("schema", "found"), [("trajectories", "m.model"), ("tokens", None), ("", None)])
def test_what_keeps_what_a_model_did_measures_it(schema, found):
    links = {"model": Link("model", "m", "model", "model"), "judge": Link("judge", "j", "model", "model")}
    outputs = (Link("report", "a", "report", "report"), Link("kept", "a", "kept", "dataset", schema=schema))
    for names in (("model",), ("model", "judge")):
        inputs = tuple(links[name] for name in names)
        subject_of = subject(StageReport("a", "a", "agent.evaluate", "done", inputs=inputs, outputs=outputs))
        assert (subject_of.origin if subject_of else None) == found


def test_the_page_of_a_hostile_journal(writer):
    name = "<script>alert('stage')</script>"
    names = [f"{name}{n}" for n in range(3)]
    writer.start(
        [stage(n, '"><svg onload=alert(1)>', x={"<i>": ["</td>"]}) for n in names],
        description="\x1b[31mred\x1b[0m \ud800 \x00 ${7*7} {{ 7*7 }}",
        git={"commit": "'\"><script>", "branch": "<b>", "dirty": True},
        machine={"processor": "<u>", "cpus": 2},
        versions={"<s>": "&"},
    )
    error = {"message": "<img src=http://e.vil/x>", "fix": "<a href='javascript:1'>", "tail": "]]></pre>"}
    writer.finish(names[0], "failed", error=error, metrics={"<metric>": math.nan})
    writer.finish(names[1], "done", makes={"<model>": "model"}, metrics={"perplexity": math.inf})
    writer.end("failed")
    report = told(writer)
    html = render(report, model_table(report.stages), [], [])
    html.encode("utf-8")
    page = read(html)
    assert all(n in page.text for n in names)
    assert "red" in page.text
    assert "\x1b" not in html
    assert "{{ 7*7 }}" in page.text
    assert "<img src=http://e.vil/x>" in page.text


@settings(max_examples=40, deadline=None)
@given(st.text(max_size=30), st.text(max_size=30), st.dictionaries(st.text(max_size=9), st.floats(), max_size=3))
def test_whatever_a_stage_says_the_page_stands(name, text, metrics):
    specs = [{"name": name, "uses": text, "params": {text: [text, {name: text}]}, "upstream": [name + "x"]}]
    item = {"name": name, "kind": text, "digest": text, "bytes": 1, "uri": text}
    end = {"state": "failed", "metrics": metrics, "outputs": [item], "error": {"message": text, "tail": text}}
    events = [
        {"event": "run-started", "time": 0, "run": text, "pipeline": name, "description": text, "stages": specs},
        {"event": "message", "time": 1, "stage": name, "text": text},
        {"event": "stage-finished", "time": 1, "stage": name, **end},
        {"event": "run-finished", "time": 2, "state": "failed", "seconds": 0.0},
    ]
    report = gather(events, {})
    html = render(report, model_table(report.stages), [], [])
    read(html)
    assert html.encode("utf-8").rstrip().endswith(b"</html>")


def test_a_run_of_no_stages_and_one_that_has_barely_begun(writer):
    writer.start([], git=None, machine={}, versions={}, seed=None)
    report = told(writer)
    page = read(render(report, model_table(report.stages), [], []))
    assert "0 stages" in page.text
    assert "Models" not in page.text


@pytest.mark.parametrize(
    ("metric", "value", "reference", "expected", "good"),
    [
        ("perplexity", 12.0, 10.0, "+20.0 %", "worse"),
        ("perplexity", 30.0, 10.0, "× 3", "worse"),
        ("bytes", 25.0, 100.0, "× 0.25", "better"),
        ("boolq_acc", 0.75, 0.5, "+25.0 pt", "better"),
        ("acc,none", 0.25, 0.5, "−25.0 pt", "worse"),
        ("loss", -1.0, 2.0, "−3", ""),
        ("loss", 1.0, 0.0, "+1", ""),
        ("loss", 0.0, 1.0, "−1", ""),
        ("perplexity", 5.0, 5.0, "=", ""),
        ("perplexity", 5.001, 5.0, "≈", ""),
        ("loss", math.nan, 1.0, "", ""),
        ("loss", 1.0, math.inf, "", ""),
        ("peak_memory_gib", 3.0, 4.0, "−25.0 %", ""),
    ],
)
def test_changes_in_words(metric, value, reference, expected, good):
    assert change(metric, value, reference) == expected
    assert verdict(metric, value, reference) == good


def test_a_partial_rerun_says_what_it_took_and_what_it_left(writer):
    writer.start([*STAGES[:2], {**STAGES[2], "state": "left"}], rerun_of="r0")
    writer.finish("teacher", "kept", producer="r0", reason="stale, but its result of run r0 is taken as it is")
    writer.finish("corpus", makes={"heldout": "dataset"})
    writer.end()
    report = told(writer)
    assert (report.rerun_of, [one.state for one in report.stages]) == ("r0", ["kept", "done", "left"])
    page = read(render(report, model_table(report.stages), [], [])).text
    for words in ("reruns r0", "1 kept, 1 done, 1 not chosen", "Taken as it is: stale", "Not chosen for this run"):
        assert words in page, words
