"""`quantize.gptq` and `quantize.awq` from end to end, on models of two layers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, MixtralConfig, MixtralForCausalLM

from grafts.loader import load_model, save_model
from stages.artifacts import Dataset, Model
from stages.errors import UserError
from stages.quantize.awq import AwqParams, QuantizeAwq
from stages.quantize.gptq import GptqParams, QuantizeGptq
from stages.quantize.rtn import QuantizeRoundToNearest, RoundToNearestParams
from stages.stage import Context
from tests.tiny import tiny_model, tokens_dataset

IDS = torch.arange(2, 50).reshape(2, 24)
STAGES: dict[str, tuple[Any, Any]] = {
    "rtn": (QuantizeRoundToNearest, RoundToNearestParams),
    "gptq": (QuantizeGptq, GptqParams),
    "awq": (QuantizeAwq, AwqParams),
}
CALIBRATED = pytest.mark.parametrize("method", ["gptq", "awq"])


@pytest.fixture
def parent(tmp_path: Path) -> Path:
    """A bfloat16 model whose norms make some inputs far stronger than others, as those of pretrained models do."""
    source = tiny_model(tmp_path / "float32", hidden=64)
    model = load_model(source, dtype=torch.bfloat16)
    for name, parameter in model.named_parameters():
        if "layernorm" in name:
            parameter.data[:6] = 8
    save_model(model, tmp_path / "parent", tokenizer_from=source)
    return tmp_path / "parent"


@pytest.fixture
def tokens(tmp_path: Path, parent: Path) -> Dataset:
    return tokens_dataset(tmp_path / "tokens", parent, num_windows=16)


def quantize(method: str, parent: Path, out: Path, tokens: Dataset, seed: int = 0, **params: Any) -> Context:
    stage_class, params_class = STAGES[method]
    stage = stage_class(params_class(**{"group_size": 32, **params}))
    data = {"heldout": tokens} if method == "rtn" else {"heldout": tokens, "calibration": tokens}
    inputs = {"model": Model(parent), **data}
    stage.check(inputs)
    context = Context(inputs=inputs, out=out / method, scratch=out / "scratch", seed=seed)
    stage.run(context)
    assert set(context.results) == set(stage.metrics)
    return context


def logits(path: Path, load: Any = load_model) -> torch.Tensor:
    with torch.no_grad():
        return load(path, dtype=torch.bfloat16)(input_ids=IDS).logits


@CALIBRATED
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_plain_transformers_loads_what_was_measured(
    tmp_path: Path, parent: Path, tokens: Dataset, method: str, bits: int, symmetric: bool
):
    context = quantize(method, parent, tmp_path, tokens, bits=bits, symmetric=symmetric)
    out = context.output("model")
    assert torch.equal(logits(out, AutoModelForCausalLM.from_pretrained), logits(out))
    assert context.results["kl_to_parent"] > 0
    config = json.loads((out / "config.json").read_text())["quantization_config"]
    assert config["config_groups"]["group_0"]["weights"]["num_bits"] == bits
    model = AutoModelForCausalLM.from_pretrained(out)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert model.generate(IDS, max_new_tokens=3, do_sample=False).shape == (2, 27)


@CALIBRATED
def test_outputs_move_less_than_with_round_to_nearest(tmp_path: Path, parent: Path, tokens: Dataset, method: str):
    found, plain = (quantize(name, parent, tmp_path, tokens, bits=3).results for name in (method, "rtn"))
    assert found["output_error"] < 0.9 * found["output_error_rounded"]
    assert found["kl_to_parent"] < 0.9 * plain["kl_to_parent"]
    assert found["weight_error"] > plain["weight_error"], "what is kept is the output, not the weight"


def test_the_report_tells_inputs_errors_and_where_scales_went(tmp_path: Path, parent: Path, tokens: Dataset):
    context = quantize("awq", parent, tmp_path, tokens)
    report = json.loads((context.output("report") / "report.json").read_text())
    assert report["metrics"] == context.results
    details, layer = report["details"], "model.layers.0."
    assert [f"{layer}self_attn.{part}_proj" for part in "qkv"] in details["inputs_shared_by"]
    assert details["scaling"][f"{layer}self_attn.q_proj"]["source"] == f"{layer}input_layernorm"
    assert details["scaling"][f"{layer}self_attn.q_proj"]["exponent"] > 0
    assert details["scaling"][f"{layer}self_attn.o_proj"] == {"source": None, "exponent": 0.0}
    assert details["output_errors"].keys() == details["layer_errors"].keys() == details["output_errors_rounded"].keys()
    assert context.results["scaled_share"] == 0.75
    assert context.results["calibration_tokens"] == 16 * 32


def test_awq_with_exponent_nought_alone_writes_the_bytes_of_round_to_nearest(
    tmp_path: Path, parent: Path, tokens: Dataset
):
    written = [
        (quantize(name, parent, tmp_path, tokens, **options).output("model") / "model.safetensors").read_bytes()
        for name, options in (("awq", {"exponents": 1}), ("rtn", {}))
    ]
    assert written[0] == written[1]


@CALIBRATED
def test_equal_work_gives_equal_bytes_and_another_seed_other_windows(
    tmp_path: Path, parent: Path, tokens: Dataset, method: str
):
    contexts = [
        quantize(method, parent, tmp_path / str(run), tokens, seed=seed, calibration_windows=4)
        for run, seed in enumerate((0, 0, 1))
    ]
    written = [
        {file.name: file.read_bytes() for file in context.out.rglob("*") if file.is_file()} for context in contexts
    ]
    assert written[0] == written[1]
    assert written[0]["model.safetensors"] != written[2]["model.safetensors"]


@CALIBRATED
def test_batches_do_not_matter_and_sequence_does(tmp_path: Path, parent: Path, tokens: Dataset, method: str):
    runs = {"one": {"batch_size": 1}, "seven": {"batch_size": 7}}
    found = {name: quantize(method, parent, tmp_path / name, tokens, **each).results for name, each in runs.items()}
    assert found["one"]["kl_to_parent"] == pytest.approx(found["seven"]["kl_to_parent"], rel=0.05)
    default = STAGES[method][1]().sequential
    other = quantize(method, parent, tmp_path / "other", tokens, sequential=not default)
    assert other.results["output_error"] != found["one"]["output_error"]


@CALIBRATED
def test_skipped_layers_keep_what_they_compute(tmp_path: Path, parent: Path, tokens: Dataset, method: str):
    skip = ("lm_head", "model.layers.0.*", "*.k_proj")
    context = quantize(method, parent, tmp_path, tokens, skip=skip)
    before, after = (load_file(path / "model.safetensors") for path in (parent, context.output("model")))
    first = [name for name in before if "layers.0." in name]
    assert first
    assert all(torch.equal(before[name], after[name]) for name in first)
    assert "model.layers.1.self_attn.k_proj.weight" in after
    assert "model.layers.1.self_attn.q_proj.weight" not in after
    if method == "awq":  # k reads the input whose norm took the scales of q and v
        weight, norm = "model.layers.1.self_attn.k_proj.weight", "model.layers.1.input_layernorm.weight"
        assert not torch.equal(after[norm], before[norm])
        acts = [(tensors[weight].float() * tensors[norm].float()) for tensors in (before, after)]
        torch.testing.assert_close(acts[1], acts[0], rtol=0.02, atol=1e-6)


def test_calibration_of_another_tokenizer_is_refused(tmp_path: Path, parent: Path):
    other = tiny_model(tmp_path / "other", vocab_size=300)
    data = tokens_dataset(tmp_path / "foreign", other)
    with pytest.raises(UserError, match="the tokens come from tokenizer") as caught:
        quantize("gptq", parent, tmp_path, data)
    assert caught.value.where in ("heldout", "calibration")


def test_only_the_calibration_of_another_tokenizer_is_refused_by_its_name(
    tmp_path: Path, parent: Path, tokens: Dataset
):
    data = tokens_dataset(tmp_path / "foreign", tiny_model(tmp_path / "other", vocab_size=300))
    stage = QuantizeGptq(GptqParams())
    with pytest.raises(UserError) as caught:
        stage.check({"model": Model(parent), "heldout": tokens, "calibration": data})
    assert caught.value.where == "calibration"


@CALIBRATED
def test_fewer_tokens_than_inputs_are_refused(tmp_path: Path, parent: Path, tokens: Dataset, method: str):
    with pytest.raises(UserError, match=r"2 windows of 32 tokens .*: 64 < 128"):
        quantize(method, parent, tmp_path, tokens, calibration_windows=2)


@CALIBRATED
def test_weights_that_make_no_numbers_are_named(tmp_path: Path, parent: Path, tokens: Dataset, method: str):
    broken = shutil.copytree(parent, tmp_path / "broken")
    tensors = load_file(broken / "model.safetensors")
    tensors["model.layers.1.post_attention_layernorm.weight"][0] = float("inf")
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"input of model.layers.1.mlp.gate_proj holds \d+ values that are not finite"):
        quantize(method, broken, tmp_path, tokens)


@CALIBRATED
def test_fused_experts_are_refused_before_compute(tmp_path: Path, method: str):
    experts = tiny_model(tmp_path / "experts")
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_local_experts": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2}
    save_model(MixtralForCausalLM(MixtralConfig(vocab_size=384, **sizes, **heads)), experts, tokenizer_from=None)
    tokens = tokens_dataset(tmp_path / "data", experts)
    skip = ("lm_head", "*.mlp.gate.weight")
    with pytest.raises(UserError, match=r"mlp\.experts\.gate_up_proj .* is experts fused into one tensor"):
        quantize(method, experts, tmp_path, tokens, skip=skip)
    kept = quantize(method, experts, tmp_path, tokens, skip=(*skip, "*.mlp.experts.*"))
    assert torch.isfinite(logits(kept.output("model"))).all()
