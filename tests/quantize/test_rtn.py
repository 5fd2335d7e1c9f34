from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, MixtralConfig, MixtralForCausalLM

from grafts.loader import load_model, save_model
from grafts.rtn import dequantise, quantise
from stages.artifacts import Dataset, Model
from stages.errors import UserError
from stages.quantize.rtn import QuantizeRoundToNearest, RoundToNearestParams
from stages.quantize.targets import targets
from stages.stage import Context
from tests.tiny import tiny_model, tokens_dataset

IDS = torch.arange(2, 50).reshape(2, 24)


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


def bfloat16_model(directory: Path, **options: Any) -> Path:
    source = tiny_model(directory / "float32", hidden=64, **options)
    save_model(load_model(source, dtype=torch.bfloat16), directory / "parent", tokenizer_from=source)
    return directory / "parent"


def quantize(parent: Path, out: Path, heldout: Dataset | None = None, **params: Any) -> Context:
    stage = QuantizeRoundToNearest(RoundToNearestParams(**{"group_size": 32, **params}))
    inputs = {"model": Model(parent), **({"heldout": heldout} if heldout else {})}
    stage.check(inputs)
    context = Context(inputs=inputs, out=out / "out", scratch=out / "scratch")
    stage.run(context)
    return context


@pytest.mark.parametrize("tie", [True, False])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [4, 8])
def test_packed_and_reloaded_is_the_fake_quantised_model_exactly(tmp_path: Path, bits: int, symmetric: bool, tie: bool):
    parent = bfloat16_model(tmp_path, tie_embeddings=tie)
    context = quantize(parent, tmp_path, bits=bits, symmetric=symmetric)
    fake = load_model(parent, dtype=torch.bfloat16)
    for name, layer in fake.named_modules():
        if isinstance(layer, torch.nn.Linear) and name != "lm_head":
            layer.weight.data = dequantise(quantise(layer.weight.data, bits, 32, symmetric=symmetric))
    ours = load_model(context.output("model"), dtype=torch.bfloat16)
    plain = AutoModelForCausalLM.from_pretrained(context.output("model"), dtype=torch.bfloat16)
    assert torch.equal(logits(ours), logits(fake))
    assert torch.equal(logits(plain), logits(fake))
    assert (plain.lm_head.weight is plain.model.embed_tokens.weight) == tie
    assert not torch.equal(logits(fake), logits(load_model(parent, dtype=torch.bfloat16)))


def test_the_reloaded_model_saves_as_an_ordinary_one(tmp_path: Path):
    context = quantize(bfloat16_model(tmp_path), tmp_path)
    model = load_model(context.output("model"), dtype=torch.bfloat16)
    save_model(model, tmp_path / "dense", tokenizer_from=None)
    assert "quantization_config" not in json.loads((tmp_path / "dense" / "config.json").read_text())
    assert torch.equal(logits(load_model(tmp_path / "dense", dtype=torch.bfloat16)), logits(model))


def test_the_report_tells_sizes_errors_and_the_distance_to_the_parent(tmp_path: Path):
    parent = bfloat16_model(tmp_path)
    heldout = tokens_dataset(tmp_path / "data", parent, num_windows=8)
    found = {bits: quantize(parent, tmp_path / str(bits), heldout, bits=bits).results for bits in (4, 8)}
    report = json.loads((tmp_path / "4" / "out" / "report" / "report.json").read_text())
    assert report["metrics"] == found[4]
    assert set(report["details"]["layer_errors"]) == {
        f"model.layers.{layer}.{part}"
        for layer in (0, 1)
        for part in (
            *(f"self_attn.{name}_proj" for name in "qkvo"),
            *(f"mlp.{name}_proj" for name in ("gate", "up", "down")),
        )
    }
    assert found[4]["bytes_ratio"] < found[8]["bytes_ratio"] < 1
    assert 0 < found[8]["weight_error"] < found[4]["weight_error"] < 0.2
    assert 0 < found[8]["kl_to_parent"] < found[4]["kl_to_parent"]
    assert 0.9 < found[8]["perplexity_ratio"] < 1.1
    assert found[4]["top1_agreement"] <= 1


def test_equal_work_gives_equal_bytes(tmp_path: Path):
    parent = bfloat16_model(tmp_path)
    written = [
        {file.name: file.read_bytes() for file in quantize(parent, tmp_path / name).out.rglob("*") if file.is_file()}
        for name in ("a", "b")
    ]
    assert written[0] == written[1]


def test_skipped_layers_keep_their_weights(tmp_path: Path):
    parent = bfloat16_model(tmp_path)
    context = quantize(parent, tmp_path, skip=("lm_head", "model.layers.0.*"))
    before = load_file(parent / "model.safetensors")
    after = load_file(context.output("model") / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    assert torch.equal(before[name], after[name])
    assert name.replace("0", "1") not in after
    plain = AutoModelForCausalLM.from_pretrained(context.output("model"), dtype=torch.bfloat16)
    assert torch.equal(logits(plain), logits(load_model(context.output("model"), dtype=torch.bfloat16)))


def test_a_group_that_divides_no_layer_names_layer_and_divisors(tmp_path: Path):
    with pytest.raises(UserError, match=r"group_size 48 does not divide the 64 .* model.layers.0") as caught:
        quantize(bfloat16_model(tmp_path), tmp_path, group_size=48)
    assert "[8, 16, 32, 64]" in caught.value.fix
    odd = nn.Sequential(nn.Linear(20, 8))
    with pytest.raises(UserError, match="group_size 16 does not divide the 20") as caught:
        targets(odd, 16, ())
    assert caught.value.fix == "add '0' to skip"


def test_a_skip_that_matches_nothing_names_the_nearest(tmp_path: Path):
    with pytest.raises(UserError, match="'lm_hed' matches no part") as caught:
        quantize(bfloat16_model(tmp_path), tmp_path, skip=("lm_hed",))
    assert "lm_head" in caught.value.fix
    with pytest.raises(UserError, match="'zzz' matches no part") as caught:
        quantize(bfloat16_model(tmp_path), tmp_path, skip=("zzz",))
    assert caught.value.fix == "take 'zzz' out of skip"


def test_a_tied_head_cannot_be_packed(tmp_path: Path):
    with pytest.raises(UserError, match="untie"):
        quantize(bfloat16_model(tmp_path), tmp_path, skip=())


def test_an_untied_head_can(tmp_path: Path):
    context = quantize(bfloat16_model(tmp_path, tie_embeddings=False), tmp_path, skip=())
    assert "lm_head.weight_packed" in load_file(context.output("model") / "model.safetensors")


def test_skipping_everything_is_an_error(tmp_path: Path):
    with pytest.raises(UserError, match="no linear layer is left"):
        quantize(bfloat16_model(tmp_path), tmp_path, skip=("*",))


def test_weights_that_are_not_finite_are_named(tmp_path: Path):
    parent = bfloat16_model(tmp_path)
    tensors = load_file(parent / "model.safetensors")
    tensors["model.layers.1.mlp.down_proj.weight"][0, 0] = float("nan")
    save_file(tensors, parent / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"model.layers.1.mlp.down_proj.weight holds 1 values"):
        quantize(parent, tmp_path)


def test_fused_experts_are_not_passed_by_in_silence(tmp_path: Path):
    parent = tiny_model(tmp_path / "experts")
    config = MixtralConfig(
        vocab_size=384,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        num_local_experts=2,
    )
    save_model(MixtralForCausalLM(config), parent, tokenizer_from=None)
    with pytest.raises(UserError, match=r"mlp\.experts\.gate_up_proj .* is experts fused into one tensor"):
        quantize(parent, tmp_path, skip=("lm_head", "*.mlp.gate.weight"))


def test_linears_of_another_class_are_not_passed_by_in_silence(tmp_path: Path):
    parent = tiny_model(tmp_path / "transposed")
    config = GPT2Config(vocab_size=384, n_embd=32, n_layer=1, n_head=2, n_positions=64)
    save_model(GPT2LMHeadModel(config), parent, tokenizer_from=None)
    with pytest.raises(UserError, match=r"is a weight outside nn.Linear \(Conv1D\)") as caught:
        quantize(parent, tmp_path)
    assert "transformer.h.0.attn.c_attn.weight" in caught.value.fix


def test_a_quantised_model_is_not_quantised_again(tmp_path: Path):
    context = quantize(bfloat16_model(tmp_path), tmp_path)
    with pytest.raises(UserError, match="quantised already, by compressed-tensors"):
        quantize(context.output("model"), tmp_path / "again")


def test_heldout_of_another_tokenizer_is_refused(tmp_path: Path):
    parent, other = bfloat16_model(tmp_path), tiny_model(tmp_path / "other", vocab_size=300)
    with pytest.raises(UserError, match="the tokens come from tokenizer"):
        quantize(parent, tmp_path, tokens_dataset(tmp_path / "data", other))
