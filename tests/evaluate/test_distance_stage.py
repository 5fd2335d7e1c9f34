from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from stages.artifacts import Dataset, DatasetCard, Model
from stages.errors import UserError
from stages.evaluate.distance_stage import DistanceParams, EvaluateDistance
from stages.stage import Context
from tests.evaluate.declared import undeclared
from tests.tiny import text_dataset, tiny_model, tokens_dataset


def measure(parent: Path, child: Path, data: Dataset, out: Path, **params: Any) -> dict[str, float]:
    stage = EvaluateDistance(DistanceParams(**{"dtype": "float32", **params}))
    inputs = {"parent": Model(parent), "child": Model(child), "data": data}
    stage.check(inputs)
    context = Context(inputs=inputs, out=out / "out", scratch=out / "scratch")
    stage.run(context)
    assert undeclared(stage, context.results) == []
    return context.results


def report(out: Path) -> dict[str, Any]:
    return json.loads((out / "out" / "report" / "report.json").read_text())


def test_a_model_and_its_copy_are_at_no_distance(tmp_path: Path):
    parent, child = tiny_model(tmp_path / "parent"), tiny_model(tmp_path / "child")
    found = measure(parent, child, tokens_dataset(tmp_path / "data", parent), tmp_path)
    assert (found["kl_to_parent"], found["kl_to_parent_p99"]) == (0.0, 0.0)
    assert (found["top1_agreement"], found["perplexity_ratio"]) == (1.0, 1.0)
    assert found["parent_perplexity"] == found["child_perplexity"]
    assert found["min_layer_cosine"] == pytest.approx(1.0)
    assert found["num_tokens"] == 16 * 31


def test_the_report_has_a_figure_of_the_layers_and_equal_runs_give_equal_bytes(tmp_path: Path):
    parent, child = tiny_model(tmp_path / "parent"), tiny_model(tmp_path / "child", seed=1)
    data = tokens_dataset(tmp_path / "data", parent)
    first, second = (measure(parent, child, data, tmp_path / name, limit=3) for name in ("a", "b"))
    assert first == second == report(tmp_path / "a")["metrics"]
    details = report(tmp_path / "a")["details"]
    assert (details["windows"], details["sequence_length"], len(details["layer_cosine"])) == (3, 32, 3)
    assert first["min_layer_cosine"] == min(details["layer_cosine"][1:])
    figures = [(tmp_path / name / "out" / "report" / details["figures"][0]).read_bytes() for name in ("a", "b")]
    assert figures[0] == figures[1]
    assert figures[0].startswith(b"<?xml")
    assert b"dc:date" not in figures[0]


def test_a_child_of_other_depth_has_figures_but_no_layers(tmp_path: Path):
    parent, child = tiny_model(tmp_path / "parent"), tiny_model(tmp_path / "child", num_layers=1)
    found = measure(parent, child, tokens_dataset(tmp_path / "data", parent), tmp_path)
    assert found["kl_to_parent"] > 0
    assert "min_layer_cosine" not in found
    assert report(tmp_path)["details"]["figures"] == []


def test_other_vocabularies_tokenizers_and_data_are_refused_before_compute(tmp_path: Path):
    parent, small = tiny_model(tmp_path / "parent"), tiny_model(tmp_path / "small", vocab_size=300)
    data = tokens_dataset(tmp_path / "data", parent)
    with pytest.raises(UserError, match="the parent has 384 tokens in its vocabulary, the child 300"):
        measure(parent, small, data, tmp_path)
    other = tiny_model(tmp_path / "other")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (other / name).write_bytes((small / name).read_bytes())
    with pytest.raises(UserError, match="equal ids mean different text"):
        measure(parent, other, data, tmp_path)
    with pytest.raises(UserError, match="the tokens come from tokenizer"):
        measure(parent, parent, tokens_dataset(tmp_path / "foreign", small), tmp_path)
    unknown = Dataset(data.path)
    replace(data.card, tokenizer="").write(data.path)
    with pytest.raises(UserError, match=r"the tokens come from tokenizer \(unknown\), the parent has"):
        measure(parent, parent, unknown, tmp_path)
    with pytest.raises(UserError, match="holds text"):
        measure(parent, parent, text_dataset(tmp_path / "text"), tmp_path)


def test_no_windows_and_a_short_context_are_refused(tmp_path: Path):
    parent, short = tiny_model(tmp_path / "parent"), tiny_model(tmp_path / "short", max_positions=16)
    data = tokens_dataset(tmp_path / "data", parent)
    with pytest.raises(UserError, match="data: windows of 32 tokens exceed the child's context of 16"):
        measure(parent, short, data, tmp_path)
    DatasetCard(**{**data.card.__dict__, "num_rows": 0}).write(data.path)
    with pytest.raises(UserError, match="has no windows"):
        measure(parent, parent, Dataset(data.path), tmp_path)


def test_nan_is_an_error_that_names_the_model(tmp_path: Path):
    parent, child = tiny_model(tmp_path / "parent"), tiny_model(tmp_path / "child")
    tensors = load_file(child / "model.safetensors")
    tensors["model.norm.weight"][0] = float("nan")
    save_file(tensors, child / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="the child gives NaN"):
        measure(parent, child, tokens_dataset(tmp_path / "data", parent), tmp_path)
