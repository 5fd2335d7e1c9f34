from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from grafts.loader import load_model
from stages.artifacts import Dataset, DatasetCard, Model
from stages.data.windows import TokenWindows
from stages.errors import UserError
from stages.evaluate.likelihood import likelihood, naive_likelihood
from stages.evaluate.loading import load_for_evaluation
from stages.evaluate.perplexity import EvaluatePerplexity, PerplexityParams
from stages.evaluate.text_windows import text_windows
from stages.stage import Context
from tests.evaluate.declared import undeclared
from tests.tiny import text_dataset, tiny_model, tiny_text, tokens_dataset


def evaluate(model: Path, data: Dataset, out: Path, **params: Any) -> dict[str, float]:
    stage = EvaluatePerplexity(PerplexityParams(**{"dtype": "float32", **params}))
    inputs = {"model": Model(model), "data": data}
    stage.check(inputs)
    context = Context(inputs=inputs, out=out / "out", scratch=out / "scratch")
    stage.run(context)
    assert undeclared(stage, context.results) == []
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


def test_a_model_that_does_not_load_is_named(tmp_path: Path):
    model = tiny_model(tmp_path / "model")
    tensors = load_file(model / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"the model .*model cannot be loaded: the weights .* missing: model\.norm"):
        load_for_evaluation(Model(model), "float32")


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


def test_text_is_measured_without_preparing_it(tmp_path: Path):
    """The stage's figure on text is the naive loop's on the joined documents, the short last window included."""
    source, data = tiny_model(tmp_path / "model"), text_dataset(tmp_path / "data", 7)
    found = evaluate(source, data, tmp_path, window=100)
    text = "\n\n".join(tiny_text(7))
    ids = torch.tensor(Tokenizer.from_file(str(source / "tokenizer.json")).encode(text).ids)
    assert len(ids) % 100 > 1
    model, nats = load_model(source, dtype=torch.float32), 0.0
    for window in ids.split(100):
        with torch.no_grad():
            logs = torch.log_softmax(model(window[None, :-1]).logits[0].double(), -1)
        nats -= sum(logs[position, token].item() for position, token in enumerate(window[1:].tolist()))
    num_predicted = len(ids) - len(ids.split(100))
    assert found["num_tokens"] == num_predicted
    assert found["num_bytes"] == len(text.encode())
    assert found["perplexity"] == pytest.approx(math.exp(nats / num_predicted), rel=1e-6)
    bits = nats / num_predicted / math.log(2) * len(ids) / len(text.encode())
    assert found["bits_per_byte"] == pytest.approx(bits, rel=1e-6)
    assert found["byte_perplexity"] == pytest.approx(2**bits, rel=1e-6)
    details = json.loads((tmp_path / "out" / "report" / "report.json").read_text())["details"]
    assert (details["protocol"], details["window"], details["last_window_targets"]) == (
        "disjoint",
        100,
        len(ids) % 100 - 1,
    )


def test_batches_of_one_and_eight_agree_on_text_with_a_short_last_window(tmp_path: Path):
    source, data = tiny_model(tmp_path / "model"), text_dataset(tmp_path / "data", 12)
    one, eight = (evaluate(source, data, tmp_path / str(size), window=50, batch_size=size) for size in (1, 8))
    assert one == pytest.approx(eight, rel=1e-5)


def test_a_window_is_the_context_when_nobody_says(tmp_path: Path):
    source, data = tiny_model(tmp_path / "model", max_positions=64), text_dataset(tmp_path / "data", 3)
    assert evaluate(source, data, tmp_path) == evaluate(source, data, tmp_path / "again", window=64)


def test_text_with_a_limit_is_the_front_of_the_whole(tmp_path: Path):
    source, data = tiny_model(tmp_path / "model"), text_dataset(tmp_path / "data", 40)
    found = evaluate(source, data, tmp_path, window=32, limit=3)
    whole = text_windows(Model(source), data, 32, None, "disjoint")
    naive = naive_likelihood(load_model(source, dtype=torch.float32), whole.windows[:3])
    assert found["num_tokens"] == naive.num_tokens
    assert found["perplexity"] == pytest.approx(naive.perplexity, rel=1e-6)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"window": 300}, "window: 300 exceeds the model's context of 256"),
        ({"window": 16, "tokens": True}, "window: 16, but the data is packed in windows of 32"),
        ({"protocol": "rolling", "tokens": True}, "packed tokens share none"),
    ],
)
def test_windows_and_protocols_that_do_not_fit_are_refused(params: dict[str, Any], message: str, tmp_path: Path):
    source = tiny_model(tmp_path / "model")
    packed = params.pop("tokens", False)
    data = tokens_dataset(tmp_path / "data", source) if packed else text_dataset(tmp_path / "data")
    with pytest.raises(UserError, match=message):
        evaluate(source, data, tmp_path, **params)


def test_no_documents_no_tokenizer_and_other_schemas_are_refused(tmp_path: Path):
    source, data = tiny_model(tmp_path / "model"), text_dataset(tmp_path / "data", 2)
    DatasetCard("text", num_rows=0, num_bytes=0).write(tmp_path / "data")
    with pytest.raises(UserError, match="has no documents"):
        evaluate(source, Dataset(data.path), tmp_path)
    DatasetCard("messages", num_rows=2, num_bytes=9).write(tmp_path / "data")
    with pytest.raises(UserError, match="holds messages"):
        evaluate(source, Dataset(data.path), tmp_path)
    DatasetCard("text", num_rows=2, num_bytes=9).write(tmp_path / "data")
    (source / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"no tokenizer\.json"):
        evaluate(source, Dataset(data.path), tmp_path)


def test_ids_beyond_the_vocabulary_are_refused(tmp_path: Path):
    source = tiny_model(tmp_path / "model")
    data = tokens_dataset(tmp_path / "data", source)
    small = tiny_model(tmp_path / "small", vocab_size=300)
    (small / "tokenizer.json").unlink()
    card = {**data.card.__dict__, "tokenizer": ""}
    DatasetCard(**card).write(data.path)
    with pytest.raises(UserError, match="the model's vocabulary has 300"):
        evaluate(small, Dataset(data.path), tmp_path)
