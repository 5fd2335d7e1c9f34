"""Computing in float32 where a CPU has no instructions for the stored type, without a trace left behind."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from grafts import apply, arithmetic
from grafts.arithmetic import computes_in, computing, computing_dtype, raised
from grafts.loader import load_model, save_model
from grafts.quantised.graft import QuantisedLinears
from grafts.quantised.linear import hold_weights
from stages.evaluate.distance import compare, distance
from tests.grafts.families import tiny

IDS = torch.arange(48).view(2, 24) % 31


@pytest.fixture(params=[(), ("avx512_bf16",), ("amx_bf16",), ("bf16",)], ids=["none", "avx512", "amx", "arm"])
def instructions(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[bool]:
    """Whether the CPU has instructions for bfloat16."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: dict.fromkeys(request.param, True))
    computes_in.cache_clear()
    yield bool(request.param)
    computes_in.cache_clear()


def test_what_this_kind_of_machine_computes_in(instructions: bool) -> None:
    assert computing_dtype(torch.bfloat16) == (torch.bfloat16 if instructions else torch.float32)
    assert computing_dtype(torch.bfloat16, "cuda") == torch.bfloat16
    assert computing_dtype(torch.float32) == torch.float32
    assert computing_dtype(torch.int8) == torch.int8
    ids, pair = raised((IDS, {"cos": [torch.ones(2, dtype=torch.bfloat16), None]}))
    assert ids is IDS
    assert pair["cos"][0].dtype == computing_dtype(torch.bfloat16)
    assert pair["cos"][1] is None


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU without any instructions for half precision."""
    monkeypatch.setattr(arithmetic, "computes_in", lambda dtype, _device="cpu": dtype not in arithmetic.INSTRUCTIONS)


@pytest.mark.usefixtures("bare")
def test_raised_models_compute_as_float32_ones_and_come_back_untouched() -> None:
    model = tiny().to(torch.bfloat16)
    wide = copy.deepcopy(model).float()
    storages = [tensor.data_ptr() for tensor in model.parameters()]
    with torch.no_grad(), computing(model, model):
        assert torch.equal(model(IDS).logits, wide(IDS).logits)
    assert [tensor.data_ptr() for tensor in model.parameters()] == storages
    assert {tensor.dtype for tensor in model.parameters()} == {torch.bfloat16}


@pytest.mark.usefixtures("bare")
def test_an_error_gives_the_weights_back_too() -> None:
    model = tiny().to(torch.bfloat16)
    with pytest.raises(KeyError), computing(model):
        raise KeyError
    assert model.dtype == torch.bfloat16


@pytest.mark.usefixtures("bare")
def test_distances_are_those_of_float32_models() -> None:
    pair = [tiny(seed=seed).to(torch.bfloat16) for seed in (0, 1)]
    found = distance(*pair, IDS)
    wide = [model.float() for model in pair]
    assert found == compare(*wide, IDS).distance
    assert distance(pair[0], pair[0], IDS).kl == 0


@pytest.mark.usefixtures("bare")
def test_held_weights_follow_the_type() -> None:
    model = apply(tiny().to(torch.bfloat16), [QuantisedLinears(bits=4, group_size=8, symmetric=False)])
    hold_weights(model)
    with torch.no_grad():
        before = model(IDS).logits
        with computing(model):
            assert model(IDS).logits.dtype == torch.float32
        assert torch.equal(model(IDS).logits, before)


def test_parameters_are_written_in_the_type_asked_for_and_stay_as_written(tmp_path: Path) -> None:
    model = tiny()
    save_model(model, tmp_path, tokenizer_from=None, dtype=torch.bfloat16)
    assert model.dtype == torch.float32
    read = load_model(tmp_path, dtype=torch.float32)
    for (name, ours), theirs in zip(model.named_parameters(), read.parameters(), strict=True):
        assert torch.equal(ours, theirs), name
    assert '"dtype": "bfloat16"' in (tmp_path / "config.json").read_text(encoding="utf-8")


def test_scales_are_written_in_it_too(tmp_path: Path) -> None:
    model = apply(tiny(), [QuantisedLinears(bits=4, group_size=8, symmetric=False)])
    save_model(model, tmp_path, tokenizer_from=None, dtype=torch.bfloat16)
    written = load_file(tmp_path / "model.safetensors")
    assert {tensor.dtype for tensor in written.values() if tensor.is_floating_point()} == {torch.bfloat16}
    assert model.model.layers[0].mlp.up_proj.weight_scale.dtype == torch.float32


def test_weights_held_since_inference_mode_can_be_trained_beside() -> None:
    model = apply(tiny(), [QuantisedLinears(bits=4, group_size=8, symmetric=False)])
    hold_weights(model)
    with torch.inference_mode():
        before = model(IDS).logits
    found = model(IDS, labels=IDS)
    found.loss.backward()
    assert torch.equal(found.logits, before)
    assert model.get_input_embeddings().weight.grad is not None
