from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from transformers import PreTrainedModel

from grafts import GraftedConfig, apply
from grafts.bases import decoder_layers
from grafts.hybrid.calibration import head_rms
from grafts.hybrid.graft import HybridHeads, mixers
from grafts.hybrid.settings import DeltaNet, Softmax
from tests.grafts.families import FAMILIES, tiny, tokens
from tests.grafts.hybrids import ALL, GRAFTS, HEADS, LOOSE, TEACHER, hybrid, logits


@pytest.mark.parametrize("family", FAMILIES)
def test_all_softmax_with_the_switches_off_is_the_teacher(family: str):
    teacher, ids = tiny(family), tokens(length=30)
    graft = HybridHeads(full_heads=(ALL, ALL, ALL), **TEACHER)
    student = apply(copy.deepcopy(teacher), [graft])
    torch.testing.assert_close(logits(student, ids), logits(teacher, ids), rtol=0, atol=1e-5)
    assert len(mixers(student)) == 3


@pytest.mark.parametrize(
    "changes",
    [
        {"softmax": Softmax(rope=False, length_scale=None, output_gate=False)},
        {"softmax": Softmax(rope=True, length_scale=4.0, output_gate=False)},
        {"normalise": True},
        {"others": "sliding_window", "window": 5, "full_heads": HEADS},
        {"full_heads": HEADS},
    ],
)
def test_every_other_switch_changes_something(changes: dict[str, Any]):
    graft = HybridHeads(**{"full_heads": (ALL, ALL, ALL), **TEACHER, **changes})
    teacher, ids = tiny(), tokens()
    assert (logits(apply(copy.deepcopy(teacher), [graft]), ids) - logits(teacher, ids)).abs().max() > 1e-3


def test_an_open_gate_changes_little():
    teacher, ids = tiny(), tokens()
    gated = HybridHeads(full_heads=(ALL,) * 3, softmax=Softmax(rope=True, length_scale=None), normalise=False)
    moved = (logits(apply(copy.deepcopy(teacher), [gated]), ids) - logits(teacher, ids)).abs().max()
    assert 0 < moved < 0.05


def test_windows_as_long_as_the_text_are_the_teacher():
    teacher, ids = tiny(), tokens()
    graft = HybridHeads(full_heads=((), (1,), ALL), others="sliding_window", window=21, **TEACHER)
    student = apply(copy.deepcopy(teacher), [graft])
    torch.testing.assert_close(logits(student, ids), logits(teacher, ids), rtol=0, atol=1e-5)


def test_windows_are_what_a_sliding_base_computes():
    sliding = tiny("mistral", sliding_window=6)
    full = tiny("mistral", sliding_window=None)
    full.load_state_dict(sliding.state_dict())
    graft = HybridHeads.by_layer(full.config, (), others="sliding_window", window=6, **TEACHER)
    torch.testing.assert_close(logits(apply(full, [graft]), tokens()), logits(sliding, tokens()), rtol=0, atol=1e-5)


def test_first_tokens_are_kept_where_no_window_was_before():
    for family, expected in (("llama", [2, 2, 2]), ("mistral", [0, 0, 0])):
        changes = {"sliding_window": 6} if family == "mistral" else {}
        graft = HybridHeads(full_heads=((),) * 3, others="sliding_window", window=5, sinks=2)
        found = apply(tiny(family, **changes), [graft])
        assert [mixer.window.sinks for mixer in mixers(found).values()] == expected


def test_flash_attention_has_no_sinks():
    graft = HybridHeads(full_heads=((),) * 3, others="sliding_window", window=5, sinks=2)
    student = apply(tiny(), [graft])
    for mixer in mixers(student).values():
        mixer.window.config._attn_implementation = "flash_attention_2"
    with pytest.raises(ValueError, match="sdpa or eager"):
        mixers(student)[0](torch.zeros(1, 3, 32), _rotary(student, 3))


def _rotary(model: PreTrainedModel, length: int) -> tuple[Tensor, Tensor]:
    return model.model.rotary_emb(torch.zeros(1, length, 32), torch.arange(length)[None])


def test_heads_and_groups_may_be_renumbered():
    """Another order of the teacher's key-value groups, with the same heads kept, is the same function."""
    teacher, ids = tiny("qwen3"), tokens()
    order = [1, 0]
    renumbered = copy.deepcopy(teacher)
    with torch.no_grad():
        for layer in decoder_layers(renumbered):
            _reorder(layer.self_attn, order)
    heads = ((0,), (1, 2), ())
    moved = tuple(tuple(sorted(order.index(head // 2) * 2 + head % 2 for head in kept)) for kept in heads)
    first = apply(teacher, [HybridHeads(full_heads=heads, deltanet=DeltaNet(forgetting=(0.01, 0.01)))])
    second = apply(renumbered, [HybridHeads(full_heads=moved, deltanet=DeltaNet(forgetting=(0.01, 0.01)))])
    torch.testing.assert_close(logits(first, ids), logits(second, ids), **LOOSE)


def _reorder(attention: Any, order: list[int]) -> None:
    for name, size in (("k_proj", 8), ("v_proj", 8), ("q_proj", 16)):
        weight = getattr(attention, name).weight
        weight.copy_(weight.unflatten(0, (-1, size))[order].flatten(0, 1))
    columns = attention.o_proj.weight
    columns.copy_(columns.unflatten(1, (-1, 16))[:, order].flatten(1, 2))


def test_linear_heads_read_the_group_that_the_teacher_lets_them_read():
    attention = decoder_layers(tiny("llama"))[0].self_attn
    mixer = HybridHeads(full_heads=((), None, None)).convert_layer(attention)
    x = torch.randn(1, 5, 32)
    keys = attention.k_proj(x).unflatten(-1, (2, 8)).repeat_interleave(2, dim=2)
    torch.testing.assert_close(mixer.linear.k_proj(x).unflatten(-1, (4, 8)), keys)
    queries = attention.q_proj(x).unflatten(-1, (4, 8))
    torch.testing.assert_close(mixer.linear.q_proj(x).unflatten(-1, (4, 8)), queries)


@pytest.mark.parametrize("heads", [(0,), (0, 1), (0, 2), (0, 1, 2), (1, 2, 3), ALL])
def test_softmax_heads_compute_what_they_computed_in_the_teacher(heads: tuple[int, ...]):
    teacher = tiny("qwen3")
    attention = decoder_layers(teacher)[1].self_attn
    inputs = _attention_inputs(teacher)
    expected = _heads_of(attention, attention, inputs)[:, :, list(heads)]
    mixer = HybridHeads(full_heads=(None, heads, None), **TEACHER).convert_layer(attention)
    torch.testing.assert_close(_heads_of(mixer, mixer, inputs)[:, :, list(heads)], expected)


def _attention_inputs(model: PreTrainedModel) -> dict[str, Any]:
    x = torch.randn(2, 7, 32, generator=torch.Generator().manual_seed(3))
    return {"hidden_states": x, "position_embeddings": model.model.rotary_emb(x, torch.arange(7)[None])}


def _heads_of(layer: Any, attention: Any, inputs: dict[str, Any]) -> Tensor:
    seen: list[Tensor] = []
    handle = attention.o_proj.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        layer(attention_mask=None, **inputs)
    handle.remove()
    return seen[0].unflatten(-1, (4, 8))


@pytest.mark.parametrize("family", FAMILIES)
def test_calibrated_gains_start_nearer_to_the_teacher(family: str):
    teacher, ids = tiny(family), tokens(4)
    graft = HybridHeads(full_heads=HEADS)
    rms = head_rms(teacher, [ids])

    def error(calibration: list[Tensor]) -> float:
        student = apply(copy.deepcopy(teacher), [graft], calibration=calibration)
        total = 0.0
        for index, mixer in mixers(student).items():
            attention = decoder_layers(teacher)[index].self_attn
            inputs = _rotated(teacher, index)
            with torch.no_grad():
                expected = attention(attention_mask=None, **inputs)[0]
                found = mixer(attention_mask=None, **inputs)[0]
            total += (found - expected).square().sum().item()
            if calibration:
                assert torch.equal(mixer.gain, rms[index])
        return total

    assert error([ids]) < error([])


def _rotated(model: PreTrainedModel, index: int) -> dict[str, Any]:
    """Inputs of layer `index`, with the rotary embedding of its kind."""
    x = torch.randn(2, 7, 32, generator=torch.Generator().manual_seed(3))
    kinds = [model.config.layer_types[index]] if model.config.model_type == "gemma3_text" else []
    return {"hidden_states": x, "position_embeddings": model.model.rotary_emb(x, torch.arange(7)[None], *kinds)}


def test_the_mean_rms_of_heads_is_that_of_what_enters_o_proj():
    model, batches = tiny(), [tokens(2, 10), tokens(1, 4, seed=2)]
    seen: list[Tensor] = []
    handle = decoder_layers(model)[2].self_attn.o_proj.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    found = head_rms(model.train(), batches)[2]
    handle.remove()
    heads = torch.cat([batch.flatten(0, 1) for batch in seen]).unflatten(-1, (4, 8))
    torch.testing.assert_close(found, heads.square().mean(-1).sqrt().mean(0))
    assert model.training
    assert torch.equal(head_rms(tiny(attention_dropout=0.9).train(), batches)[2], found)


@pytest.mark.parametrize("name", GRAFTS)
def test_gradients_reach_every_parameter(name: str):
    model = hybrid(GRAFTS[name]).train()
    model(tokens(), labels=tokens()).loss.backward()
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None, parameter_name
        # a bias on the keys shifts all scores of a softmax alike
        assert parameter.grad.abs().max() > 0 or parameter_name.endswith("k_proj.bias"), parameter_name


def test_converting_draws_no_random_numbers_and_is_repeatable():
    state = torch.get_rng_state()
    teacher = tiny()
    torch.set_rng_state(state)
    first, second = (apply(copy.deepcopy(teacher), [GRAFTS["every switch"]]).state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_layer_can_be_converted_beside_its_teacher():
    teacher = tiny()
    attention = decoder_layers(teacher)[0].self_attn
    before, ids = logits(teacher, tokens()), tokens()
    mixer = GRAFTS["paper"].convert_layer(attention)
    for parameter in [p for branch in mixer.branches for p in branch.parameters()]:
        parameter.data.zero_()
    assert torch.equal(logits(teacher, ids), before)
    with pytest.raises(ValueError, match="leaves layer 0"):
        GRAFTS["one layer"].convert_layer(attention)


def test_one_model_is_enough_to_align_layer_by_layer():
    """The attention layers kept from before are still the teacher's, and each mixer learns from its own alone."""
    model, ids = tiny(), tokens()
    expected = logits(model, ids)
    teachers = {index: layer.self_attn for index, layer in enumerate(decoder_layers(model))}
    apply(model, [GRAFTS["paper"]], calibration=[ids])
    inputs = _rotated(model, 1)
    mixer = mixers(model)[1]
    target = teachers[1](attention_mask=None, **inputs)[0].detach()
    (mixer(attention_mask=None, **inputs)[0] - target).square().mean().backward()
    touched = {name.split("self_attn")[0] for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert touched == {"model.layers.1."}
    for index, attention in teachers.items():
        decoder_layers(model)[index].self_attn = attention
    assert torch.equal(logits(model, ids), expected)


def test_the_layer_wise_hybrid_is_a_mask_of_heads():
    config = tiny().config
    graft = HybridHeads.by_layer(config, {1}, window=7)
    assert graft.full_heads == ((), ALL, ())
    model = apply(tiny(), [graft])
    assert [mixer.full is not None for mixer in mixers(model).values()] == [False, True, False]
    assert [mixer.linear is not None for mixer in mixers(model).values()] == [True, False, True]


@pytest.mark.parametrize(
    ("heads", "reason"),
    [
        (((0,), (1,)), "full_heads has 2 layers, the model has 3"),
        (((0,), (4,), ()), "layer 1 names head 4, the last is 3"),
    ],
)
def test_heads_that_the_model_lacks_are_refused(heads: Any, reason: str):
    with pytest.raises(ValueError, match=reason):
        apply(tiny(), [HybridHeads(full_heads=heads)])


@pytest.mark.parametrize("heads", [((0, 0),), ((-1,),)])
def test_heads_that_no_model_has_are_refused(heads: Any):
    with pytest.raises(ValidationError, match="expected different heads"):
        HybridHeads(full_heads=heads)


def test_an_uneven_base_is_refused():
    config = tiny().config
    config.per_layer_config = {1: {"intermediate_size": 24}}
    with pytest.raises(ValueError, match="take an even model"):
        GraftedConfig(config, [HybridHeads(full_heads=HEADS)])


def test_a_base_that_reads_both_ways_is_refused():
    with pytest.raises(ValueError, match="both directions"):
        apply(tiny("gemma3_text", use_bidirectional_attention=True), [HybridHeads(full_heads=HEADS)])
