"""The recursive graft: exact where it must be, the tail of the spectrum where it cannot."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from grafts import GraftedForCausalLM, apply
from grafts.loader import load_model, save_model
from grafts.quantised.graft import QuantisedLinears
from grafts.recursive.core import Core
from grafts.recursive.graft import Recursive
from grafts.recursive.relaxed import RelaxedLinear, truncated_svd
from tests.grafts.families import FAMILIES, tiny, tokens

KEPT = ("lm_head", "*.left", "*.right")
PATTERN = ["sliding_attention", "full_attention", "sliding_attention"] * 2
FULL_RANK = 48


def parent(family: str = "llama", dtype: torch.dtype = torch.float64, **changes) -> PreTrainedModel:
    layer_types = {"layer_types": PATTERN} if family in ("qwen2", "gemma3_text") else {}
    return tiny(family, num_hidden_layers=6, **layer_types, **changes).to(dtype)


def logits(model: PreTrainedModel) -> torch.Tensor:
    with torch.no_grad():
        return model(tokens(), use_cache=False).logits


def weight(model: PreTrainedModel, layer: int) -> torch.Tensor:
    found = model.model.layers[layer].mlp.up_proj
    return (found.linear if isinstance(found, RelaxedLinear) else found).weight


@pytest.mark.parametrize(
    ("initialisation", "order"), [("average", "cycle"), ("stepwise", "cycle"), ("lower", "sequence")]
)
@pytest.mark.parametrize("family", ["llama", "mistral", "qwen3"])
def test_full_rank_is_the_parent(family: str, initialisation: str, order: str):
    model = parent(family)
    before = logits(model)
    relaxed = apply(model, [Recursive(loops=2, order=order, initialisation=initialisation, rank=FULL_RANK)])
    torch.testing.assert_close(logits(relaxed), before, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("family", ["qwen2", "gemma3_text"])
def test_full_rank_is_a_parent_whose_layers_alternate(family: str):
    model = parent(family)
    before = logits(model)
    torch.testing.assert_close(logits(apply(model, [Recursive(loops=2, rank=FULL_RANK)])), before, rtol=1e-9, atol=1e-9)


def test_one_loop_is_the_parent_to_the_bit():
    model = parent()
    before, count = logits(model), sum(p.numel() for p in model.parameters())
    graft = Recursive(loops=3, rank=4)
    once = apply(model, [graft.identity(model.config)])
    assert torch.equal(logits(once), before)
    assert sum(p.numel() for p in once.parameters()) == count


def test_rank_zero_is_plain_tying():
    """Against a parent whose layers were overwritten by hand."""
    model, tied = parent(), parent()
    with torch.no_grad():
        for first, second in ((1, 3), (2, 4)):
            one, other = tied.model.layers[first], tied.model.layers[second]
            for mine, theirs in zip(one.parameters(), other.parameters(), strict=True):
                mine.copy_((mine + theirs) / 2)
            other.load_state_dict(one.state_dict())
    graft = Recursive(loops=2, begin=1, end=1, norms="shared")
    torch.testing.assert_close(logits(apply(model, [graft])), logits(tied), rtol=1e-12, atol=1e-12)


def test_equal_layers_lose_nothing_by_sharing():
    model = parent()
    for layer in (2, 3, 4, 5):
        model.model.layers[layer].load_state_dict(model.model.layers[layer % 2].state_dict())
    before = logits(model)
    found = apply(model, [Recursive(loops=3, rank=2)])
    torch.testing.assert_close(logits(found), before, rtol=1e-10, atol=1e-10)
    assert found.model.layers[4].mlp.up_proj.left.abs().max() < 1e-10


@pytest.mark.parametrize(
    ("initialisation", "givers"), [("lower", [0, 1, 2]), ("stepwise", [0, 3, 5]), ("average", None)]
)
def test_shared_weights_start_where_the_paper_says(initialisation: str, givers: list[int] | None):
    model = parent()
    before = [weight(model, layer).detach().clone() for layer in range(6)]
    found = apply(model, [Recursive(loops=2, initialisation=initialisation)])
    for owner in range(3):
        expected = (before[owner] + before[owner + 3]) / 2 if givers is None else before[givers[owner]]
        torch.testing.assert_close(weight(found, owner), expected)
        assert weight(found, owner) is weight(found, owner + 3)


def test_what_is_drawn_is_a_function_of_the_seed():
    def drawn(seed: int) -> list[torch.Tensor]:
        made = apply(tiny(), [Recursive(loops=3, rank=2, adapter="zero")], seed=seed)
        return [each.right.data for each in made.modules() if isinstance(each, RelaxedLinear)]

    first, again, other = drawn(0), drawn(0), drawn(1)
    assert all(torch.equal(one, two) for one, two in zip(first, again, strict=True))
    assert not any(torch.equal(one, two) for one, two in zip(first, other, strict=True))


def test_the_svd_s_error_is_the_tail_of_the_spectrum():
    residual = torch.randn(12, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    values, errors = torch.linalg.svdvals(residual), []
    for rank in range(13):
        left, right = truncated_svd(residual, rank)
        errors.append((residual - left @ right).norm().item())
        assert errors[-1] == pytest.approx(values[rank:].square().sum().sqrt().item(), abs=1e-9)
    assert errors == sorted(errors, reverse=True)


def test_more_rank_comes_nearer_and_svd_begins_nearer_than_zero():
    def error(**fields) -> float:
        model = parent()
        before = weight(model, 4).detach().clone()
        up = apply(model, [Recursive(loops=2, **fields)]).model.layers[4].mlp.up_proj
        return (up.linear.weight + up.left @ up.right - before).norm().item()

    errors = [error(rank=rank) for rank in (1, 4, 16, 31)]
    assert errors == sorted(errors, reverse=True)
    assert error(rank=16) < error(rank=16, adapter="zero")
    assert error(rank=4, adapter="zero") == pytest.approx(error(rank=8, adapter="zero"))


def test_storage_and_parameters_are_shared_once():
    model = parent()
    layer = sum(p.numel() for p in model.model.layers[0].parameters() if p.ndim > 1)
    count, linears = sum(p.numel() for p in model.parameters()), list(model.model.layers[0].modules())
    sizes = [sum(m.weight.shape) for m in linears if isinstance(m, nn.Linear)]
    found = apply(model, [Recursive(loops=2, rank=3)])
    assert sum(p.numel() for p in found.parameters()) == count - 3 * layer + 6 * 3 * sum(sizes)
    listed = [id(p) for p in found.parameters()]
    assert len(listed) == len(set(listed))
    for layer in range(3):
        assert weight(found, layer).data_ptr() == weight(found, layer + 3).data_ptr()
        norms = [found.model.layers[index].input_layernorm.weight for index in (layer, layer + 3)]
        assert norms[0] is not norms[1]


def test_the_gradient_of_a_shared_weight_is_the_sum_over_loops():
    shared = apply(parent(), [Recursive(loops=3, rank=2)])
    untied = apply(parent(), [Recursive(loops=3, rank=2)])
    for layer in untied.model.layers:
        for module in layer.modules():
            if isinstance(module, nn.Linear):
                module.weight = nn.Parameter(module.weight.detach().clone())
    for model in (shared, untied):
        model(tokens(), labels=tokens()).loss.backward()
    expected = sum(weight(untied, layer).grad for layer in (1, 3, 5))
    torch.testing.assert_close(weight(shared, 1).grad, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("family", FAMILIES)
def test_saved_and_read_to_the_bit_and_every_depth_has_its_cache(family: str, tmp_path: Path):
    model = apply(parent(family, torch.float32), [Recursive(loops=2, rank=2)])
    save_model(model, tmp_path, tokenizer_from=None)
    read = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert isinstance(read, GraftedForCausalLM)
    assert torch.equal(logits(read), logits(model))
    assert weight(read, 1) is weight(read, 4)
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    model.generation_config.eos_token_id = read.generation_config.eos_token_id = None
    assert torch.equal(read.generate(tokens(), **options), model.generate(tokens(), **options, use_cache=False))
    assert len(read(tokens(), use_cache=True).past_key_values.layers) == 6


def test_what_is_built_is_what_converting_makes():
    model = apply(parent(), [Recursive(loops=2, begin=2, rank=2)])
    built = GraftedForCausalLM(model.config)
    shapes = [{name: p.shape for name, p in each.named_parameters()} for each in (model, built)]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize("family", ["qwen3", "llama"])
def test_the_result_can_be_quantised_and_keeps_its_ties(family: str, tmp_path: Path):
    model = apply(parent(family, torch.float32), [Recursive(loops=2, rank=2)])
    before = logits(model)
    model = apply(model, [QuantisedLinears(bits=8, group_size=16, symmetric=False, skip=KEPT)])
    assert (logits(model) - before).abs().max() < 0.2 * before.abs().max()
    save_model(model, tmp_path, tokenizer_from=None)
    assert torch.equal(logits(load_model(tmp_path, dtype=torch.float32)), logits(model))


def test_the_core_counts():
    core = Core(num_layers=10, loops=3, begin=1)
    assert (core.block, list(core.owners), core.ends()) == (3, [1, 2, 3], [4, 7, 10])
    assert list(core.ties()) == [(4, 1), (7, 1), (5, 2), (8, 2), (6, 3), (9, 3)]
    assert core.spaced() == [1, 5, 9]
    assert Core(4, 4).spaced() == [0]
    runs = Core(num_layers=8, loops=3, begin=1, end=1, order="sequence")
    assert (runs.block, list(runs.owners), runs.ends()) == (2, [1, 4], [4, 7])
    assert list(runs.ties()) == [(2, 1), (3, 1), (5, 4), (6, 4)]
    assert list(Core(6, 1).ties()) == []


def test_what_cannot_be_looped_is_refused_before_anything_changes():
    model = parent()
    before = logits(model)
    with pytest.raises(ValueError, match=r"the 6 layers .* do not divide into 4 loops: they do into 1, 2, 3, 6"):
        apply(model, [Recursive(loops=4)])
    with pytest.raises(ValueError, match="leave none of 6"):
        apply(model, [Recursive(loops=1, begin=4, end=2)])
    assert type(model).__name__ == "LlamaForCausalLM"
    assert torch.equal(logits(model), before)
    with pytest.raises(ValueError, match=r"layers 0 and 1 would share .* sliding_attention .* full_attention"):
        apply(parent("gemma3_text"), [Recursive(loops=6)])
    with pytest.raises(ValueError, match="'recursive' cannot follow 'recursive'"):
        apply(apply(parent(), [Recursive(loops=2)]), [Recursive(loops=2)])


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_norms_are_shared_beside_low_rank_differences(family: str):
    model = apply(parent(family), [Recursive(loops=2, rank=2, norms="shared")])
    first, second = (model.model.layers[layer] for layer in (0, 3))
    assert first.input_layernorm.weight is second.input_layernorm.weight
    assert first.self_attn.q_proj.linear.weight is second.self_attn.q_proj.linear.weight
    changes = [layer.self_attn.q_proj.left @ layer.self_attn.q_proj.right for layer in (first, second)]
    assert changes[0].any(), "what the average of both lacks"
    torch.testing.assert_close(changes[0], -changes[1])
