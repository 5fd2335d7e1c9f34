"""The mirror against a real MLflow on SQLite."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from pipelines.lineage.cursor import Cursor
from pipelines.lineage.mirror import RunMirror
from pipelines.lineage.tracker import Tracker
from pipelines.running.journal import run_directory
from tests.lineage.journals import Writer, digest, stage

STAGES = [
    stage("teacher", "source.model", path="smollm2"),
    stage("corpus", "data.prepare", tokens=200_000, pad_token="<pad>"),
    stage("student", "distill.logits", "teacher", "corpus", optimizer={"name": "adamw", "betas": [0.9, 0.95]}),
    stage("scores", "evaluate.perplexity", "student", "corpus"),
]


def write(writer: Writer, *, pipeline: str, content: str = "", end: bool = True) -> None:
    """A whole run: two sources, a training stage with curves, an evaluation."""
    writer.start(STAGES, pipeline)
    writer.begin("teacher")
    writer.finish("teacher", makes={"model": "model"}, seconds=5.0, content=content)
    writer.begin("corpus")
    writer.finish("corpus", makes={"train": "dataset", "heldout": "dataset"}, content=content)
    writer.begin("student")
    for step in range(0, 50, 10):
        writer.curve("student", step, loss=3.0 - step / 50)
    reads = {"teacher": "teacher.model", "data": "corpus.train"}
    metrics = {"loss": 1.9, "pass@1": 0.5}
    writer.finish("student", reads=reads, makes={"model": "model"}, metrics=metrics, content=content)
    writer.begin("scores")
    reads = {"model": "student.model", "data": "corpus.heldout"}
    writer.finish("scores", reads=reads, makes={"report": "report"}, metrics={"perplexity": 12.5}, content=content)
    if end:
        writer.end()


def mirror(store: Path, run: str) -> Cursor:
    """Mirror what the journal holds, in this process."""
    RunMirror(store, run, Tracker(store)).catch_up()
    return Cursor.load(run_directory(store, run))


def census(store: Path, cursor: Cursor) -> tuple[int, int, int]:
    """How many runs, models and points of the loss curve MLflow has of a run."""
    tracker = Tracker(store)
    runs = tracker.runs_of(cursor.experiment, cursor.uid)
    points = tracker.client.get_metric_history(cursor.children["student#1"], "loss")
    return len(runs), len(tracker.models("regraft.uid", cursor.uid)), len(points)


@pytest.fixture(scope="module")
def done(store: Path) -> Cursor:
    """A whole run, mirrored."""
    write(Writer(store, "whole"), pipeline="whole")
    return mirror(store, "whole")


@pytest.fixture(scope="module")
def tracker(store: Path) -> Tracker:
    return Tracker(store)


def child(tracker: Tracker, cursor: Cursor, name: str) -> Run:
    return tracker.client.get_run(cursor.children[f"{name}#1"])


def test_parent_and_children(tracker: Tracker, done: Cursor) -> None:
    parent = tracker.client.get_run(done.parent)
    assert parent.info.run_name == "whole"
    assert parent.info.status == "FINISHED"
    assert parent.data.params["student.optimizer.name"] == "adamw"
    assert parent.data.metrics["scores/perplexity"] == 12.5
    assert parent.data.tags["mlflow.source.git.commit"].startswith("c0ffee")
    assert set(done.children) == {"teacher#1", "corpus#1", "student#1", "scores#1"}
    student = child(tracker, done, "student")
    assert student.data.tags["mlflow.parentRunId"] == done.parent
    assert student.data.tags["regraft.key"] == digest("key student")
    experiment = tracker.client.get_experiment(done.experiment)
    assert experiment.name == "whole"
    assert experiment.tags["mlflow.experimentKind"] == "custom_model_development"


def test_times_come_from_the_journal(tracker: Tracker, done: Cursor) -> None:
    teacher = child(tracker, done, "teacher").info
    assert teacher.start_time == 1_760_000_002_000
    assert teacher.end_time == 1_760_000_007_000


def test_params_metrics_and_curves(tracker: Tracker, done: Cursor) -> None:
    student = child(tracker, done, "student")
    assert student.data.params["optimizer.betas"] == "[0.9, 0.95]"
    assert student.data.params["resources.workers"] == "1"
    assert student.data.metrics["pass_at_1"] == 0.5
    assert student.data.metrics["loss"] == 1.9, "the final figure must win over the curve's last point"
    history = tracker.client.get_metric_history(student.info.run_id, "loss")
    assert sorted((point.step, point.value) for point in history)[:3] == [(0, 3.0), (10, 2.8), (20, 2.6)]
    assert child(tracker, done, "corpus").data.params == {
        "tokens": "200000",
        "pad_token": "<pad>",
        "execution.micro_batch": "4",
        "resources.workers": "1",
        "resources.cpus": "1.0",
        "resources.gpus": "0.0",
    }


def test_datasets(tracker: Tracker, done: Cursor) -> None:
    made = {found.dataset.name: found for found in child(tracker, done, "corpus").inputs.dataset_inputs}
    read = child(tracker, done, "student").inputs.dataset_inputs[0]
    assert set(made) == {"corpus.train", "corpus.heldout"}
    assert (read.dataset.name, read.dataset.digest) == ("corpus.train", made["corpus.train"].dataset.digest)
    assert len(read.dataset.digest) == 36
    tags = {tag.key: tag.value for tag in read.tags}
    assert tags["mlflow.data.context"] == "input"
    assert tags["regraft.digest"] == digest("corpus.train")
    assert {tag.key: tag.value for tag in made["corpus.train"].tags}["mlflow.data.context"] == "output"


def test_models_link_producer_and_reader(tracker: Tracker, done: Cursor) -> None:
    teacher, student = child(tracker, done, "teacher"), child(tracker, done, "student")
    made = [model.model_id for model in teacher.outputs.model_outputs]
    assert made == [model.model_id for model in student.inputs.model_inputs]
    model = tracker.client.get_logged_model(made[0])
    assert model.source_run_id == teacher.info.run_id
    assert model.status == "READY"
    assert model.tags["regraft.digest"] == digest("teacher.model")
    assert model.tags["regraft.uri"].endswith("artifacts/teacher/model")


def test_evaluation_belongs_to_the_model_and_its_data(tracker: Tracker, done: Cursor) -> None:
    model = child(tracker, done, "scores").inputs.model_inputs[0].model_id
    metrics = {metric.key: metric for metric in tracker.client.get_logged_model(model).metrics or []}
    assert metrics["perplexity"].value == 12.5
    assert metrics["perplexity"].dataset_name == "corpus.heldout"
    assert "seconds" not in metrics


def test_description_and_picture(tracker: Tracker, done: Cursor, store: Path) -> None:
    parent = tracker.client.get_run(done.parent)
    text = parent.data.tags["mlflow.note.content"]
    assert text.startswith("✓ **done** · 4 done · ")
    assert f"get-artifact?path=dag.svg&run_uuid={done.parent}" in text
    assert (
        f"[student](#/experiments/{done.experiment}/runs/{done.children['student#1']}?workflowType=machine_learning)"
        in text
    )
    artifacts = {found.path for found in tracker.client.list_artifacts(done.parent)}
    assert artifacts == {"dag.svg", "pipeline.yaml", "environment.json"}
    assert parent.info.artifact_uri.startswith((store / "mlflow-artifacts").as_uri())


def test_models_are_found_across_pipelines_and_cached_stages_link_their_producer(
    store: Path, tracker: Tracker, done: Cursor
) -> None:
    writer = Writer(store, "again")
    writer.start(STAGES, "another-pipeline")
    writer.finish("teacher", "cached", makes={"model": "model"}, producer="whole", reason="same key")
    writer.begin("student")
    writer.finish("student", reads={"teacher": "teacher.model"}, makes={"model": "model"}, content="changed")
    writer.end()
    cursor = mirror(store, "again")
    original = child(tracker, done, "teacher")
    cached = child(tracker, cursor, "teacher")
    assert cached.info.status == "FINISHED"
    assert cached.info.start_time == cached.info.end_time
    assert cached.data.tags["regraft.cache"] == "hit"
    assert cached.data.tags["regraft.producer_run"] == "whole"
    assert cached.data.tags["regraft.producer_mlflow_run"] == original.info.run_id
    assert original.info.run_id in cached.data.tags["mlflow.note.content"]
    model = original.outputs.model_outputs[0].model_id
    assert [found.model_id for found in cached.outputs.model_outputs] == [model]
    figures = tracker.client.get_logged_model(model).metrics or []
    assert cached.info.run_id not in {figure.run_id for figure in figures}, "each figure is bound to the model once"
    assert [found.model_id for found in child(tracker, cursor, "student").inputs.model_inputs] == [model]


def test_a_model_of_unknown_origin_is_referred_to(store: Path, tracker: Tracker) -> None:
    writer = Writer(store, "orphan")
    writer.knows(
        "old.model", {"kind": "model", "stage": "old", "output": "model", "digest": digest("old"), "uri": "/x"}
    )
    writer.start(STAGES, "orphan")
    writer.begin("student")
    writer.finish("student", reads={"teacher": "old.model"})
    cursor = mirror(store, "orphan")
    found = child(tracker, cursor, "student").inputs.model_inputs
    assert tracker.client.get_logged_model(found[0].model_id).tags["regraft.digest"] == digest("old")


def test_failed_skipped_and_repeated_stages(store: Path, tracker: Tracker) -> None:
    writer = Writer(store, "broken")
    writer.start(STAGES, "broken")
    writer.begin("teacher")
    writer.begin("teacher", attempt=2)
    error = {"message": "gate does not hold", "fix": "relax it", "tail": "Traceback\nStageError: gate"}
    writer.finish("teacher", "failed", attempt=2, error=error, seconds=3.0)
    writer.finish("student", "skipped", reason="teacher failed")
    writer.begin("corpus")
    writer.finish("corpus", "cancelled")
    writer.end("failed")
    cursor = mirror(store, "broken")
    runs = {name: tracker.client.get_run(run) for name, run in cursor.children.items()}
    status = {name: run.info.status for name, run in runs.items()}
    assert status == {"teacher#1": "FAILED", "teacher#2": "FAILED", "student#1": "KILLED", "corpus#1": "KILLED"}
    assert runs["teacher#2"].info.run_name == "teacher (attempt 2)"
    assert runs["teacher#2"].data.tags["regraft.error.message"] == "gate does not hold"
    assert "StageError: gate" in runs["teacher#2"].data.tags["mlflow.note.content"]
    assert tracker.client.get_run(cursor.parent).info.status == "FAILED"


def test_mirroring_twice_changes_nothing(store: Path) -> None:
    write(Writer(store, "twice"), pipeline="twice")
    first = mirror(store, "twice")
    before = census(store, first)
    assert before == (5, 2, 6)
    assert mirror(store, "twice") == first
    (run_directory(store, "twice") / "mirror.json").unlink()
    second = mirror(store, "twice")
    assert (second.parent, second.children) == (first.parent, first.children)
    assert census(store, second) == before


@pytest.mark.parametrize("call", ["log_outputs", "set_terminated", "finalize_logged_model", "log_text"])
def test_a_mirror_that_dies_midway_is_resumed(store: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    run = f"dies-{call}"
    write(Writer(store, run), pipeline="dies", content=call)
    broken = RunMirror(store, run, Tracker(store))
    real, calls = getattr(broken.tracker.client, call), []

    def second_fails(*args: Any, **kwargs: Any) -> Any:
        calls.append(args)
        if len(calls) == 2:
            real(*args, **kwargs)
            raise MlflowException("the database went away")
        return real(*args, **kwargs)

    monkeypatch.setattr(broken.tracker.client, call, second_fails)
    with pytest.raises(MlflowException):
        broken.catch_up()
    assert Cursor.load(run_directory(store, run)).lines == 0
    cursor = mirror(store, run)
    assert census(store, cursor) == (5, 2, 6)
    statuses = {found.info.status for found in Tracker(store).runs_of(cursor.experiment, cursor.uid).values()}
    assert statuses == {"FINISHED"}


def test_a_growing_journal_is_followed(store: Path, tracker: Tracker) -> None:
    writer = Writer(store, "grows")
    following = RunMirror(store, "grows", tracker)
    assert following.catch_up() == 0
    writer.start(STAGES, "grows")
    writer.begin("teacher")
    with writer.path.open("a") as file:
        file.write('{"event": "stage-fin')
    assert following.catch_up() == 2
    assert child(tracker, following.cursor, "teacher").info.status == "RUNNING"
    following.interrupted()
    assert child(tracker, following.cursor, "teacher").info.status == "KILLED"
    assert tracker.client.get_run(following.cursor.parent).info.status == "KILLED"


def test_a_new_database_is_filled_again(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(Writer(store, "moved"), pipeline="moved")
    first = mirror(store, "moved")
    state = json.loads((run_directory(store, "moved") / "mirror.json").read_text())
    (run_directory(store, "moved") / "mirror.json").write_text(json.dumps({**state, "tracking": "sqlite:///gone.db"}))
    assert mirror(store, "moved").lines == first.lines
    assert census(store, first) == (5, 2, 6)


def test_many_params_and_points_go_in_batches(store: Path, tracker: Tracker) -> None:
    writer = Writer(store, "wide")
    params = {f"p{number}": "x" * 600 for number in range(230)}
    writer.start([stage("big", "source.model", **params)], "wide")
    writer.begin("big")
    for step in range(2100):
        writer.curve("big", step, loss=1.0 / (step + 1))
    writer.finish("big")
    writer.end()
    cursor = mirror(store, "wide")
    big = child(tracker, cursor, "big")
    assert len([name for name in big.data.params if name.startswith("p")]) == 230
    assert {len(big.data.params[f"p{number}"]) for number in range(230)} == {500}
    assert len(tracker.client.get_metric_history(big.info.run_id, "loss")) == 2100


def test_reruns_are_linked_both_ways(store: Path, tracker: Tracker) -> None:
    write(Writer(store, "earlier"), pipeline="kin")
    earlier = mirror(store, "earlier")
    later = {}
    for run, field in (("again", "rerun_of"), ("further", "resumes")):
        writer = Writer(store, f"kin-{run}")
        writer.start(STAGES, "kin", **{field: "earlier"})
        writer.end()
        later[field] = mirror(store, f"kin-{run}")
    first = tracker.client.get_run(later["rerun_of"].parent).data.tags
    assert first["regraft.rerun_of"] == "earlier"
    assert first["regraft.rerun_of_mlflow_run"] == earlier.parent
    assert f"reruns [earlier](#/experiments/{earlier.experiment}/runs/{earlier.parent}?" in first["mlflow.note.content"]
    assert "goes on with [earlier](" in tracker.client.get_run(later["resumes"].parent).data.tags["mlflow.note.content"]
    for _ in range(2):
        text = tracker.client.get_run(earlier.parent).data.tags["mlflow.note.content"]
        assert text.count("Later: ") == 1
        assert f"rerun by [kin-again](#/experiments/{earlier.experiment}/runs/{later['rerun_of'].parent}?" in text
        assert (
            f"gone on with by [kin-further](#/experiments/{earlier.experiment}/runs/{later['resumes'].parent}?" in text
        )
        assert text.index("dag.svg") < text.index("Later: ") < text.index("| | Stage |")
        (run_directory(store, "earlier") / "mirror.json").unlink()
        mirror(store, "earlier")


def test_a_rerun_of_a_run_that_mlflow_does_not_have(store: Path, tracker: Tracker) -> None:
    writer = Writer(store, "lonely")
    writer.start(STAGES, "lonely", rerun_of="never-seen")
    writer.end()
    tags = tracker.client.get_run(mirror(store, "lonely").parent).data.tags
    assert "reruns never-seen" in tags["mlflow.note.content"]


def test_kept_and_left_stages_say_so(store: Path, tracker: Tracker) -> None:
    write(Writer(store, "before"), pipeline="partial")
    first = mirror(store, "before")
    writer = Writer(store, "partial")
    stages = [*STAGES[:3], {**STAGES[3], "state": "left"}]
    writer.start(stages, "partial", rerun_of="before")
    writer.finish("teacher", "kept", makes={"model": "model"}, producer="before", reason="stale, but taken as it is")
    writer.finish("corpus", "cached", makes={"train": "dataset"}, producer="before", reason="from run before")
    writer.begin("student")
    writer.finish("student", reads={"teacher": "teacher.model", "data": "corpus.train"}, content="new")
    writer.end()
    cursor = mirror(store, "partial")
    assert set(cursor.children) == {"teacher#1", "corpus#1", "student#1"}, "nothing was done for a stage that is left"
    note = tracker.client.get_run(cursor.parent).data.tags["mlflow.note.content"]
    assert "1 done, 1 cached, 1 kept, 1 not chosen" in note
    assert "·&nbsp;not&nbsp;chosen&emsp; | scores&emsp;" in note
    kept = child(tracker, cursor, "teacher")
    assert kept.info.status == "FINISHED"
    assert kept.data.tags["regraft.producer_mlflow_run"] == first.children["teacher#1"]
    assert "stale, but taken as it is" in kept.data.tags["mlflow.note.content"]
    picture = Path(tracker.client.download_artifacts(cursor.parent, "dag.svg")).read_text()
    assert "scores: evaluate.perplexity, not chosen" in picture
    assert "teacher: source.model, kept" in picture


def test_accepted_drift_is_told(store: Path, tracker: Tracker) -> None:
    record = {"of": digest("key teacher"), "who": "Ada <ada@example.org>", "reason": "only a log line", "when": 1.0}
    file = store / "accepted" / "source.model" / "k.json"
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps(record))
    writer = Writer(store, "drift")
    writer.start(STAGES, "drift")
    writer.finish("teacher", "cached", makes={"model": "model"}, producer="x", method="source.model")
    writer.begin("corpus")
    writer.finish("corpus", makes={"train": "dataset"}, method="data.prepare")
    writer.end()
    cursor = mirror(store, "drift")
    tags = child(tracker, cursor, "teacher").data.tags
    assert (tags["regraft.drift.reason"], tags["regraft.drift.who"]) == ("only a log line", "Ada <ada@example.org>")
    assert "regraft.drift.reason" not in child(tracker, cursor, "corpus").data.tags
