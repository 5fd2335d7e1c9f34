"""What is timed computes what `generate` does, sizes are exact, and the report adds up. No test looks at a clock."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.testing._internal.two_tensor import TwoTensor
from transformers import Cache, DynamicCache, StaticCache

from stages.artifacts import Model
from stages.errors import UserError
from stages.evaluate import speed
from stages.evaluate.memory import PeakTensorBytes, cache_bytes, parameter_bytes
from stages.evaluate.speed import EvaluateSpeed, SpeedParams
from stages.evaluate.timing import Session, alternate, footprint, sample, spread
from stages.stage import Context
from tests.evaluate.declared import undeclared
from tests.evaluate.families import FAMILIES, tiny
from tests.tiny import tiny_model

IDS = torch.randint(3, 96, (2, 24), generator=torch.Generator().manual_seed(0))


def evaluate(model: Path, baseline: Path, out: Path, **params: Any) -> tuple[dict[str, float], dict[str, Any]]:
    options = {"dtype": "float32", "context_lengths": [8, 24], "decode_tokens": 4, "repetitions": 3, **params}
    stage = EvaluateSpeed(SpeedParams(**options))
    inputs = {"model": Model(model), "baseline": Model(baseline)}
    stage.check(inputs)
    context = Context(inputs=inputs, out=out / "out", scratch=out / "scratch")
    stage.run(context)
    assert undeclared(stage, context.results) == []
    return context.results, json.loads((out / "out" / "report" / "report.json").read_text())["details"]


def filled(model: torch.nn.Module) -> Any:
    session = Session(model)
    with torch.no_grad():
        session.prefill(IDS)
    return session.cache


@pytest.mark.parametrize("family", FAMILIES)
def test_a_session_decodes_what_generate_does(family: str):
    model = tiny(family)
    session = Session(model)
    with torch.no_grad():
        ids = [session.prefill(IDS).argmax(-1, keepdim=True)]
        for _ in range(6):
            ids.append(session.step(ids[-1]).argmax(-1, keepdim=True))
    expected = model.generate(IDS, max_new_tokens=7, do_sample=False, eos_token_id=None, pad_token_id=0)
    assert torch.cat(ids, dim=1).tolist() == expected[:, 24:].tolist()


def test_the_cache_of_full_attention_is_keys_and_values():
    held = 2 * 2 * 24 * 1 * 16 * 4  # keys and values, batch, tokens, heads, width, bytes
    assert cache_bytes(filled(tiny("llama"))) == 2 * held
    assert cache_bytes(filled(tiny("llama").to(torch.bfloat16))) == held
    assert footprint(tiny("llama"), IDS).cache == 2 * held


def test_a_sliding_window_holds_its_window_and_a_recurrent_state_does_not_grow():
    window = 2 * 2 * 7 * 1 * 16 * 4
    counters = 2 * 8  # each layer keeps the window's length as a tensor
    assert cache_bytes(filled(tiny("mistral"))) == 2 * window + counters
    model = tiny("falcon_mamba")
    session = Session(model)
    with torch.no_grad():
        logits_BV = session.prefill(IDS)
        before = cache_bytes(session.cache)
        session.step(logits_BV.argmax(-1, keepdim=True))
    assert cache_bytes(session.cache) == before > 0


def test_a_hybrid_counts_both_kinds_of_state():
    cache = filled(tiny("qwen3_next"))
    full = 2 * 2 * 24 * 1 * 16 * 4
    recurrent = 2 * 2 * 8 * 8 * 4
    convolution = cache_bytes(cache) - full - recurrent
    assert convolution == 2 * (3 * 2 * 8) * 4 * 4


def test_a_static_cache_counts_what_it_set_aside():
    model = tiny("llama")
    cache: Cache = StaticCache(config=model.config, max_cache_len=64)
    with torch.no_grad():
        model(IDS, past_key_values=cache, use_cache=True)
    assert cache_bytes(cache) == pytest.approx(2 * 2 * 2 * 64 * 16 * 4, abs=64)


def test_containers_views_and_tensors_seen_twice():
    buffer = torch.zeros(100)
    assert cache_bytes({"a": [buffer], "b": (buffer,)}) == 400
    assert cache_bytes([buffer[:10], buffer[5:20]]) == 100
    assert cache_bytes([buffer, buffer[:50], buffer.view(10, 10)]) == 400
    assert cache_bytes(torch.zeros(1).expand(1000)) == 4
    assert cache_bytes(DynamicCache()) == 0
    assert cache_bytes([TwoTensor(torch.zeros(10), torch.zeros(10))]) == 80


def test_parameters_count_tied_ones_once():
    model = tiny("llama", tie_word_embeddings=True)
    buffers = sum(buffer.nbytes for buffer in model.buffers())
    assert parameter_bytes(model) >= model.num_parameters() * 4
    assert parameter_bytes(model) <= model.num_parameters() * 4 + buffers


def test_peak_counts_what_is_alive_and_forgets_the_rest():
    with PeakTensorBytes() as counter:
        kept = torch.zeros(1000)
        for _ in range(5):
            kept = kept + 1
        del kept
        torch.zeros(500)
    assert counter.peak == 8000


def test_turns_alternate_and_every_sample_is_positive(monkeypatch: pytest.MonkeyPatch):
    from stages.evaluate import timing

    models, order, turns = [tiny("llama"), tiny("mistral")], [], []
    monkeypatch.setattr(
        timing, "sample", lambda model, *args: order.append(models.index(model)) or sample(model, *args)
    )
    found = alternate(models, IDS, 3, 3, lambda: turns.append(len(order)))
    assert order == [0, 1, 1, 0, 0, 1]
    assert turns == [2, 4, 6]
    assert [len(samples) for samples in found] == [3, 3]
    for measured in found[0] + found[1]:
        assert 0 < measured.prefill <= measured.first_token
        assert measured.decode_rate == 6 / measured.decode > 0
    assert spread([3.0, 1.0, 2.0]) == {"min": 1.0, "median": 2.0, "max": 3.0}


def test_the_report_has_all_lengths_and_metrics_are_those_of_the_longest(tmp_path: Path):
    model, baseline = tiny_model(tmp_path / "model", num_layers=1), tiny_model(tmp_path / "baseline")
    found, details = evaluate(model, baseline, tmp_path, context_lengths=[24, 8, 24])
    assert [row["context_length"] for row in details["lengths"]] == [8, 24]
    last = details["lengths"][-1]
    assert found["cache_bytes_ratio"] == 0.5
    assert (found["cache_bytes"], last["baseline"]["cache_bytes"]) == (24 * 2 * 16 * 4, 24 * 2 * 16 * 4 * 2)
    assert found["peak_bytes_ratio"] == found["peak_bytes"] / last["baseline"]["peak_bytes"] < 1
    for name in ("prefill_ratio", "decode_ratio", "first_token_ratio"):
        values = last["ratios"][name]
        assert values["min"] <= values["median"] == found[name] <= values["max"]
    assert found["decode_tokens_per_second"] == last["model"]["decode_tokens_per_second"]["median"]
    assert details["device"]
    assert (tmp_path / "out" / "report" / details["figures"][0]).read_bytes().startswith(b"<?xml")


def test_progress_counts_every_turn_by_the_length_of_its_prompt(tmp_path: Path):
    models, told = {name: Model(tiny_model(tmp_path / name)) for name in ("model", "baseline")}, []
    context = Context(inputs=models, out=tmp_path / "out", scratch=tmp_path / "scratch", emit=told.append)
    EvaluateSpeed(SpeedParams(dtype="float32", context_lengths=(8, 24), decode_tokens=2, repetitions=1)).run(context)
    assert [event["done"] for event in told if event["event"] == "progress"] == [8, 16, 24, 48, 72, 96]
    assert {event["total"] for event in told if event["event"] == "progress"} == {96}


def test_prompts_depend_on_the_seed_and_suit_both_models():
    models = [tiny("llama"), tiny("llama", vocab_size=50)]
    first, again, other = (speed._prompts(models, 3, 40, seed) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first.shape == (3, 40)
    assert first.max() < 50


def test_prompts_beyond_the_context_are_refused(tmp_path: Path):
    model, short = tiny_model(tmp_path / "model"), tiny_model(tmp_path / "short", max_positions=26)
    with pytest.raises(
        UserError, match=r"baseline: context_lengths \+ decode_tokens: 28 exceeds the model's context of 26"
    ):
        evaluate(model, short, tmp_path)


def test_a_model_without_a_cache_is_refused():
    class NoCache(torch.nn.Module):
        def forward(self, input_ids: torch.Tensor, use_cache: bool) -> Any:
            return type("Output", (), {"logits": torch.zeros(1, 1, 9)})

    with pytest.raises(UserError, match="NoCache returns no cache"):
        Session(NoCache()).prefill(IDS)
