"""`transfer.score_heads`: what its report holds, equal bytes, clear errors before compute."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from stages.artifacts import Dataset, DatasetCard, Model
from stages.errors import UserError
from stages.stage import Context
from stages.training.checks import SUPPORTED
from stages.transfer.score_heads import ScoreHeads, ScoreHeadsParams
from tests.tiny import text_dataset, tiny_model

SMALL: dict[str, Any] = {
    "tasks": ("single",),
    "depths": (0.9,),
    "reaches": (16,),
    "pairs": 1,
    "length": 450,
    "rounds": 2,
    "require_correct": False,
}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Wide enough in its weights for attention to differ."""
    folder = tiny_model(tmp_path_factory.mktemp("model"), max_positions=1024)
    tensors = load_file(folder / "model.safetensors")
    larger = {name: tensor * (8 if "proj" in name else 1) for name, tensor in tensors.items()}
    save_file(larger, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return text_dataset(tmp_path_factory.mktemp("text"))


def score(
    model: Path, text: Dataset, out: Path, events: list[Any] | None = None, *, seed: int = 0, **params: Any
) -> dict[str, Any]:
    stage = ScoreHeads(ScoreHeadsParams(**{**SMALL, **params}))
    inputs = {"model": Model(model, digest="abc"), "text": text}
    stage.preflight()
    stage.check(inputs)
    emit = events.append if events is not None else lambda _: None
    stage.run(Context(inputs=inputs, out=out / "out", scratch=out / "scratch", seed=seed, emit=emit))
    return json.loads((out / "out" / "scores" / "report.json").read_text())


def test_the_report_holds_a_map_of_all_heads(source: Path, text: Dataset, tmp_path: Path):
    events: list[Any] = []
    found = score(source, text, tmp_path, events, method="both", reaches=(8, 32), pairs=2)
    metrics, details = found["metrics"], found["details"]
    assert metrics.keys() == {
        "pairs_used", "pairs_dropped", "critical_share", "gini", "attribution_rank_correlation",
    }  # fmt: skip
    assert (metrics["pairs_used"], metrics["pairs_dropped"]) == (6, 0)
    assert details["shape"] == {"layers": 2, "query_heads": 4, "key_value_heads": 2}
    scores = torch.tensor(details["scores"])
    assert scores.shape == (2, 4)
    assert 0 <= scores.min() < scores.max() <= 1
    assert torch.tensor(details["group_scores"]["max"]).tolist() == scores.unflatten(1, (2, 2)).amax(-1).tolist()
    assert details["model"] == {"digest": "abc", "type": "llama"}
    for name, probes in (("retrieval", {"single at 0.9"}), ("general", {"8 tokens", "32 tokens"})):
        of_capability = details["capabilities"][name]
        assert of_capability["pairs"].keys() == probes
        assert torch.tensor(of_capability["received"]).shape == (2, 4)
        assert all(torch.tensor(sent).shape == (2, 4) for sent in of_capability["sent"])
    assert details["attribution"]["score"] == metrics["attribution_rank_correlation"]
    progress = [event for event in events if event["event"] == "progress"]
    assert [event["done"] for event in progress] == sorted(event["done"] for event in progress)
    assert progress[-1]["done"] == progress[-1]["total"] == 3 * 2 * 3
    assert any("pairs count" in event.get("text", "") for event in events)


def test_equal_work_gives_equal_bytes_and_another_seed_other_pairs(source: Path, text: Dataset, tmp_path: Path):
    for name, seed in (("one", 0), ("two", 0), ("three", 1)):
        score(source, text, tmp_path / name, seed=seed, rounds=1)
    for file in ("report.json", "head-map.svg"):
        one, two, three = ((tmp_path / name / "out" / "scores" / file).read_bytes() for name in ("one", "two", "three"))
        assert one == two != three
        assert len(one) > 1000


def test_the_batch_does_not_matter(source: Path, text: Dataset, tmp_path: Path):
    one, many = (
        torch.tensor(score(source, text, tmp_path / str(size), batch_size=size, rounds=1)["details"]["scores"])
        for size in (1, 5000)
    )
    torch.testing.assert_close(one, many, atol=1e-3, rtol=0)


def test_attribution_alone_scores_as_both_reports_it(source: Path, text: Dataset, tmp_path: Path):
    alone = score(source, text, tmp_path / "alone", method="attribution")
    both = score(source, text, tmp_path / "both", method="both")
    assert alone["details"]["scores"] == both["details"]["attribution"]["scores"]
    assert "attribution_rank_correlation" not in alone["metrics"]
    assert alone["details"]["scores"] != both["details"]["scores"]


def test_a_smoke_run_ends_well_on_any_model(text: Dataset, tmp_path: Path):
    model = tiny_model(tmp_path / "model", max_positions=2048)
    params = ScoreHeadsParams(method="both").smoke()
    found = score(model, text, tmp_path, **params.model_dump())
    assert found["metrics"]["pairs_used"] == 2


def test_a_model_that_answers_nothing_is_told(source: Path, text: Dataset, tmp_path: Path):
    with pytest.raises(UserError, match="passes none of 8 pairs for retrieval") as caught:
        score(source, text, tmp_path, require_correct=True)
    assert "a more capable model" in caught.value.fix


def test_nan_is_an_error(text: Dataset, tmp_path: Path):
    model = tiny_model(tmp_path / "model", max_positions=1024)
    tensors = load_file(model / "model.safetensors")
    tensors["model.norm.weight"][0] = float("nan")
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="the model gives NaN"):
        score(model, text, tmp_path)


def test_other_architectures_are_refused_with_the_list(text: Dataset, tmp_path: Path):
    error = refused({"model_type": "gpt2"}, tmp_path, text)
    assert re.search("unsupported base: .* of the type 'gpt2'", str(error))
    assert ", ".join(SUPPORTED) in error.fix


def test_a_hybrid_is_refused(text: Dataset, tmp_path: Path):
    config = {"model_type": "regraft", "base": {"model_type": "llama"}, "grafts": [{"name": "hybrid"}]}
    error = refused(config, tmp_path, text)
    assert "converted already: it carries the grafts hybrid" in str(error)
    assert "pretrained model" in error.fix


def refused(config: dict[str, Any], folder: Path, text: Dataset) -> UserError:
    """The error that scoring a model with this configuration gets before compute."""
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError) as caught:
        ScoreHeads(ScoreHeadsParams()).check({"model": Model(folder), "text": text})
    return caught.value


def test_texts_longer_than_the_context_are_refused(source: Path, text: Dataset, tmp_path: Path):
    with pytest.raises(UserError, match="length: 2000 exceeds the model's context of 1024"):
        score(source, text, tmp_path, length=2000)


def test_a_length_that_holds_no_probe_is_refused_before_the_model_is_read(
    source: Path, text: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("stages.evaluate.loading.load_for_evaluation", lambda *_, **__: pytest.fail("read the model"))
    with pytest.raises(UserError, match="the length is 100"):
        score(source, text, tmp_path, length=100)


def test_no_text_is_refused(source: Path, tmp_path: Path):
    DatasetCard("text", num_rows=0, num_bytes=0).write(tmp_path)
    with pytest.raises(UserError, match="has no documents"):
        score(source, Dataset(tmp_path), tmp_path)


def test_nothing_is_measured_twice():
    with pytest.raises(ValueError, match="a value is given more than once"):
        ScoreHeadsParams(depths=(0.5, 0.5))
