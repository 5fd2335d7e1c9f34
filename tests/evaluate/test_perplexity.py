from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from grafts.loader import load_model
from stages.artifacts import Dataset, DatasetCard, Model
from stages.data.windows import TokenWindows
from stages.errors import UserError
from stages.evaluate.likelihood import likelihood, naive_likelihood
from stages.evaluate.perplexity import EvaluatePerplexity, PerplexityParams
from stages.stage import Context
from tests.tiny import text_dataset, tiny_model, tokens_dataset


def evaluate(model: Path, data: Dataset, out: Path, **params: Any) -> dict[str, float]:
    stage = EvaluatePerplexity(PerplexityParams(**{"dtype": "float32", **params}))
    inputs = {"model": Model(model), "data": data}
    stage.check(inputs)
    context = Context(inputs=inputs, out=out / "out", scratch=out / "scratch")
    stage.run(context)
    return context.results


def test_the_sum_is_that_of_the_naive_loop(tmp_path: Path):
    source = tiny_model(tmp_path / "model")
    windows = TokenWindows(tokens_dataset(tmp_path / "data", source, num_windows=5), tmp_path).tensor()
    model = load_model(source, dtype=torch.float32)
    found, naive = likelihood(model, windows), naive_likelihood(model, windows)
    assert found.num_tokens == naive.num_tokens == 5 * 31
    assert found.total_nats == pytest.approx(naive.total_nats, rel=1e-6)


def test_batches_of_one_and_eight_agree(tmp_path: Path):
    source = tiny_model(tmp_path / "model")
    data = tokens_dataset(tmp_path / "data", source, num_windows=11)
    one, eight = (evaluate(source, data, tmp_path / str(size), batch_size=size) for size in (1, 8))
    assert one["perplexity"] == pytest.approx(eight["perplexity"], rel=1e-5)
    assert one["num_tokens"] == eight["num_tokens"] == 11 * 31


def test_a_model_that_knows_nothing_has_the_vocabulary_as_perplexity(tmp_path: Path):
    source = tiny_model(tmp_path / "model", tie_embeddings=False)
    tensors = load_file(source / "model.safetensors")
    tensors["lm_head.weight"].zero_()
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    data = tokens_dataset(tmp_path / "data", source)
    found = evaluate(source, data, tmp_path)
    assert found["perplexity"] == pytest.approx(384, rel=1e-5)
    assert found["bits_per_byte"] == pytest.approx(math.log2(384) * data.card.num_tokens / data.card.num_bytes)
    assert found["bytes"] == (source / "model.safetensors").stat().st_size
    assert found["parameters"] == sum(tensor.numel() for tensor in tensors.values())


def test_the_report_holds_the_figures_and_limit_counts_windows(tmp_path: Path):
    source = tiny_model(tmp_path / "model")
    found = evaluate(source, tokens_dataset(tmp_path / "data", source), tmp_path, limit=3)
    report = json.loads((tmp_path / "out" / "report" / "report.json").read_text())
    assert found["num_tokens"] == 3 * 31
    assert report["metrics"] == found
    assert report["details"]["windows"] == 3


def test_nan_is_an_error_with_its_place(tmp_path: Path):
    source = tiny_model(tmp_path / "model")
    tensors = load_file(source / "model.safetensors")
    tensors["model.norm.weight"][0] = float("nan")
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="NaN at position 0 of window 0"):
        evaluate(source, tokens_dataset(tmp_path / "data", source), tmp_path)


def test_tokens_of_another_tokenizer_are_refused(tmp_path: Path):
    source, other = tiny_model(tmp_path / "model"), tiny_model(tmp_path / "other", vocab_size=300)
    with pytest.raises(UserError, match="data: the tokens come from tokenizer"):
        evaluate(source, tokens_dataset(tmp_path / "data", other), tmp_path)


def test_windows_longer_than_the_context_are_refused(tmp_path: Path):
    source = tiny_model(tmp_path / "model", max_positions=16)
    with pytest.raises(UserError, match="windows of 32 tokens exceed the model's context of 16"):
        evaluate(source, tokens_dataset(tmp_path / "data", source), tmp_path)


def test_text_that_is_not_prepared_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match="holds text"):
        evaluate(tiny_model(tmp_path / "model"), text_dataset(tmp_path / "data"), tmp_path)


def test_ids_beyond_the_vocabulary_are_refused(tmp_path: Path):
    source = tiny_model(tmp_path / "model")
    data = tokens_dataset(tmp_path / "data", source)
    small = tiny_model(tmp_path / "small", vocab_size=300)
    (small / "tokenizer.json").unlink()
    card = {**data.card.__dict__, "tokenizer": ""}
    DatasetCard(**card).write(data.path)
    with pytest.raises(UserError, match="the model's vocabulary has 300"):
        evaluate(small, Dataset(data.path), tmp_path)
