"""The benchmark of upcycling compares results, not only times."""

import argparse

import torch
from transformers import MixtralConfig, MixtralForCausalLM

from benchmarks.upcycle import convert, forward


def layers() -> argparse.Namespace:
    return argparse.Namespace(width=96, tokens=[1, 5], experts=[3], backward=False, repetitions=1)


def test_all_contenders_compute_the_same():
    findings = forward.measure(layers())
    assert not findings.broken
    assert len(findings.rows) == 2 * 4
    assert {ratio.theirs for ratio in findings.ratios} == {"naive loop", "Mixtral eager", "Mixtral grouped_mm"}


def test_a_contender_that_computes_something_else_is_told(monkeypatch):
    monkeypatch.setattr(forward, "naive_mix", lambda x_PC, *_: x_PC)
    told = forward.measure(layers()).broken
    assert len(told) == 2
    assert "naive loop is off by" in told[0]
    assert "Mixtral" not in told[0]


def test_parameters_that_differ_are_named_and_routers_are_not(tmp_path):
    shape = {"hidden_size": 16, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = MixtralForCausalLM(MixtralConfig(**shape, num_key_value_heads=1, num_local_experts=2, vocab_size=9))
    model.save_pretrained(tmp_path / "a")
    layer = model.model.layers[0]
    with torch.no_grad():
        layer.mlp.gate.weight += 1
        model.save_pretrained(tmp_path / "b")
        layer.mlp.experts.down_proj[1, 0, 0] += 1
        model.save_pretrained(tmp_path / "c")
    assert convert.different(tmp_path / "a", tmp_path / "b") == []
    assert convert.different(tmp_path / "a", tmp_path / "c") == ["model.layers.0.mlp.experts.down_proj"]
