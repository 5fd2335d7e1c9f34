"""`evaluate.long_context`: scores of a naive loop, grids that add up, equal bytes, clear errors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from grafts.loader import load_model
from stages.artifacts import Dataset, DatasetCard, Model
from stages.errors import UserError
from stages.evaluate.long_context import EvaluateLongContext, LongContextParams
from stages.evaluate.long_context_grid import Grid, accuracy, nll, share
from stages.evaluate.long_context_scoring import Recall, generate, recall
from stages.evaluate.needles import Probe, make_probe
from stages.evaluate.needles_scripts import TASKS
from stages.evaluate.needles_text import Haystack, Pieces
from stages.evaluate.prediction import Predictor
from stages.stage import Context
from tests.evaluate.declared import undeclared
from tests.tiny import text_dataset, tiny_model, tiny_text

SMALL: dict[str, Any] = {"lengths": (640, 512), "depths": (1.0, 0.0), "probes": 2, "dtype": "float32"}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("model"), max_positions=1024)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return text_dataset(tmp_path_factory.mktemp("text"))


def evaluate(model: Path, text: Dataset, out: Path, events: list[Any] | None = None, **params: Any) -> dict[str, Any]:
    stage = EvaluateLongContext(LongContextParams(**{**SMALL, **params}))
    inputs = {"model": Model(model), "text": text}
    stage.preflight()
    stage.check(inputs)
    emit = events.append if events is not None else lambda _: None
    context = Context(inputs=inputs, out=out / "out", scratch=out / "scratch", emit=emit)
    stage.run(context)
    assert undeclared(stage, context.results) == []
    return json.loads((out / "out" / "report" / "report.json").read_text())


def probes(source: Path, length: int = 512) -> tuple[Pieces, list[Probe]]:
    pieces = Pieces(Model(source))
    haystack = Haystack(tiny_text(64), pieces, 4096)
    return pieces, [make_probe(task, length, 0.5, pieces=pieces, haystack=haystack, seed="0") for task in TASKS]


def naive_recall(model: torch.nn.Module, probe: Probe) -> Recall:
    nats, count, hits = 0.0, 0, []
    for answer in probe.answers:
        first = True
        for place in range(*answer.span):
            with torch.no_grad():
                log_V = model(input_ids=torch.tensor([probe.ids[:place]])).logits[0, -1].double().log_softmax(-1)
            nats -= log_V[probe.ids[place]].item()
            first &= int(log_V.argmax()) == probe.ids[place]
            count += 1
        hits.append(first)
    return Recall(nats, count, tuple(hits))


def test_recall_is_that_of_the_naive_loop(source: Path):
    _, some = probes(source)
    some = [some[0], some[3]]
    model = load_model(source, dtype=torch.float32)
    for found, probe in zip(recall(Predictor(model), some), some, strict=True):
        naive = naive_recall(model, probe)
        assert found.nats == pytest.approx(naive.nats, rel=1e-5)
        assert (found.num_tokens, found.hits) == (naive.num_tokens, naive.hits)


def test_a_model_that_knows_the_answer_is_right(source: Path):
    """A stand-in whose logits point at the true next token: every hit counts, in every task."""
    _, some = probes(source)
    ids_BT = torch.tensor([probe.ids for probe in some])

    class Oracle(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def forward(self, input_ids: torch.Tensor, **_: Any) -> Any:
            rows = [int((ids_BT[:, : input_ids.shape[1]] == row).all(-1).nonzero()[0]) for row in input_ids]
            logits = torch.nn.functional.one_hot(ids_BT[rows, 1 : input_ids.shape[1] + 1], 384).float() * 50
            return type("Output", (), {"logits": logits})()

    for found in recall(Predictor(Oracle()), some):
        assert all(found.hits)
        assert found.nats == pytest.approx(0, abs=1e-6)


def test_generation_is_the_greedy_text_and_counts_the_values_in_it(source: Path, monkeypatch: pytest.MonkeyPatch):
    pieces, (single, _, several, _) = probes(source)
    some, model = [single, several], load_model(source, dtype=torch.float32)
    empty = [Recall(0.0, 1, (False,)) for _ in some]
    texts: list[str] = []
    decode = pieces.decode
    monkeypatch.setattr(pieces, "decode", lambda ids: texts.append(decode(ids)) or texts[-1])
    places = [place for place, _ in generate(model, pieces, some, empty, batch_size=2)]
    probe, ids = some[places[0]], list(some[places[0]].ids[: some[places[0]].prompt_length])
    answer = len(probe.ids) - len(ids)
    for _ in range(2 * answer):
        with torch.no_grad():
            ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
        if ids[-1] == 0:
            break
    assert texts[0].startswith(decode(ids[probe.prompt_length :]))
    monkeypatch.setattr(pieces, "decode", lambda _: f"they are {several.answers[0].value}, {several.answers[3].value}")
    written = dict(generate(model, pieces, some, empty, batch_size=4))
    assert [written[place].generated for place in range(2)] == [0.0, 0.5]


def test_generation_heeds_nothing_that_the_model_recommends(source: Path, monkeypatch: pytest.MonkeyPatch):
    pieces, some = probes(source)
    empty = [Recall(0.0, 1, (False,)) for _ in some]
    texts: dict[str, list[str]] = {"plain": [], "recommended": []}
    decode = pieces.decode
    for name, recommended in (("plain", {}), ("recommended", {"repetition_penalty": 50.0, "no_repeat_ngram_size": 1})):
        model = load_model(source, dtype=torch.float32)
        model.generation_config.update(**recommended)
        monkeypatch.setattr(pieces, "decode", lambda ids, name=name: texts[name].append(decode(ids)) or "")
        list(generate(model, pieces, some, empty, batch_size=2))
    assert texts["plain"] == texts["recommended"]


def test_metrics_and_grid_hold_what_the_docs_say(source: Path, text: Dataset, tmp_path: Path):
    events: list[Any] = []
    found = evaluate(source, text, tmp_path, events)
    metrics, details = found["metrics"], found["details"]
    for task in TASKS:
        assert {f"{task}_accuracy", f"{task}_nll", f"{task}_accuracy_512", f"{task}_accuracy_640"} <= metrics.keys()
        tables = details["grid"]["tasks"][task]
        assert set(tables) == {"accuracy", "nll", "recall"}
        assert [len(row) for row in tables["nll"]] == [2, 2]
        assert sum(map(sum, tables["accuracy"])) / 4 == pytest.approx(metrics[f"{task}_accuracy"])
    assert {"multi_value_recall", "variable_tracking_recall", "needle_nll", "needle_accuracy"} <= metrics.keys()
    assert "single_recall" not in metrics
    assert not any("generated" in name for name in metrics)
    assert (details["grid"]["lengths"], details["grid"]["depths"]) == ([512, 640], [0.0, 1.0])
    assert details["probes"] == 4 * 2 * 2 * 2
    assert details["figures"] == ["long_context.svg"]
    progress = [event for event in events if event["event"] == "progress"]
    assert progress[-1]["done"] == progress[-1]["total"] == 32


def test_equal_work_gives_equal_bytes(source: Path, text: Dataset, tmp_path: Path):
    for name in ("one", "two"):
        evaluate(source, text, tmp_path / name)
    for file in ("report.json", "long_context.svg"):
        one, two = ((tmp_path / name / "out" / "report" / file).read_bytes() for name in ("one", "two"))
        assert one == two
        assert len(one) > 1000


def test_the_batch_does_not_matter(source: Path, text: Dataset, tmp_path: Path):
    one, eight = (evaluate(source, text, tmp_path / str(size), batch_size=size)["metrics"] for size in (1, 8))
    assert one == pytest.approx(eight, rel=1e-5)


def test_generation_adds_its_figures(source: Path, text: Dataset, tmp_path: Path):
    events: list[Any] = []
    found = evaluate(source, text, tmp_path, events, generate=True, tasks=("single",), lengths=(512,), probes=1)
    assert [event["done"] for event in events if event["event"] == "progress"] == [2, 3, 4]
    assert events[-1]["total"] == 4
    assert found["metrics"]["single_generated"] == 0.0
    assert found["details"]["grid"]["tasks"]["single"]["generated"] == [[0.0], [0.0]]


def test_cells_are_averaged_over_probes_tokens_and_answers():
    grid = Grid(["multi_value"], [256], [0.5])
    for found in (Recall(2.0, 4, (True, True)), Recall(4.0, 2, (True, False))):
        grid.add(("multi_value", 256, 0.5), found)
    assert grid.table("multi_value", accuracy) == [[0.5]]
    assert grid.table("multi_value", share) == [[0.75]]
    assert grid.table("multi_value", nll) == [[1.0]]
    assert grid.metrics()["multi_value_accuracy_256"] == 0.5


def test_lengths_beyond_the_context_are_refused(source: Path, text: Dataset, tmp_path: Path):
    with pytest.raises(UserError, match="lengths: 2048 exceeds the model's context of 1024"):
        evaluate(source, text, tmp_path, lengths=(512, 2048))


def test_too_little_text_is_refused_before_the_model_is_read(source: Path, tmp_path: Path, monkeypatch: Any):
    monkeypatch.setattr("stages.evaluate.loading.load_for_evaluation", lambda *_, **__: pytest.fail("read the model"))
    with pytest.raises(UserError, match=r"the text has \d+ tokens up to its last sentence end, the probe needs"):
        evaluate(source, text_dataset(tmp_path / "text", 2), tmp_path)


def test_no_text_is_refused(source: Path, text: Dataset, tmp_path: Path):
    DatasetCard("text", num_rows=0, num_bytes=0).write(tmp_path)
    with pytest.raises(UserError, match="has no documents"):
        evaluate(source, Dataset(tmp_path), tmp_path)


def test_nan_is_an_error(text: Dataset, tmp_path: Path):
    model = tiny_model(tmp_path / "model", max_positions=1024)
    tensors = load_file(model / "model.safetensors")
    tensors["model.norm.weight"][0] = float("nan")
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="NaN for an answer after"):
        evaluate(model, text, tmp_path)


@pytest.mark.parametrize("field", ["lengths", "depths", "tasks"])
def test_nothing_is_measured_twice(field: str):
    value = {"lengths": (512, 512), "depths": (0, 0.0), "tasks": ("single", "single")}[field]
    with pytest.raises(ValueError, match="a value is given more than once"):
        LongContextParams(**{field: value})
