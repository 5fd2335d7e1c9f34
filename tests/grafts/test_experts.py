"""The graft `experts` on every base: the identities of upcycling, caches, composition and refusals."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

import grafts
from grafts.bases import decoder_layers
from grafts.experts.attention import MixtureOfAttention, naive_mixture
from grafts.experts.graft import Experts
from grafts.experts.settings import Making
from grafts.hybrid.graft import HybridHeads
from grafts.hybrid.settings import Softmax
from grafts.loader import load_model, save_model
from tests.grafts.families import FAMILIES, tiny, tokens
from tests.machine import one_thread as one_thread

WILD = Making(router_std=2.0)
"""Routers that are far from undecided."""
KINDS = {
    "feed-forward": {},
    "split": {"split": 2},
    "kv-expert": {"attention": "kv-expert"},
    "kv-shared": {"attention": "kv-shared"},
}


def experts(num_experts: int = 3, making: Making = WILD, **fields) -> Experts:
    return Experts(num_experts=num_experts, making=making, **fields)


def logits(model, ids=None, **options) -> torch.Tensor:
    with torch.no_grad():
        return model(tokens() if ids is None else ids, **options).logits


def branched(count: int = 3, family: str = "llama", *, norms: bool = False) -> list:
    """Models that share embeddings and, unless `norms` differ, norms too."""
    models = [tiny(family)]
    for seed in range(1, count):
        model = tiny(family)
        draw = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if norms or "_proj" in name:
                    parameter.add_(torch.randn(parameter.shape, generator=draw) * 0.1)
        models.append(model)
    return models


def always(model, expert: int) -> None:
    """Every router sends everything to one expert."""
    for layer in decoder_layers(model):
        for part in (layer.mlp, layer.self_attn):
            if hasattr(part, "router"):
                row = torch.full((part.router.weight.shape[0],), -1e4)
                row[expert] = 0.0
                part.router.forward = lambda x, row=row: row.to(x.dtype).expand(*x.shape[:-1], -1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_equal_experts_are_the_dense_model_for_any_router(family, kind):
    dense = tiny(family).double()
    expected = logits(dense)
    mixture = grafts.apply(dense, [experts(**KINDS[kind])])
    torch.testing.assert_close(logits(mixture), expected, rtol=0, atol=1e-5 if kind == "split" else 1e-6)
    routed = mixture(tokens(), output_router_logits=True).router_logits
    shares = KINDS[kind].get("split", 1)
    assert shares * routed[0].softmax(-1).amax(-1).mean() > 0.6, "the routers are decided"


def test_raw_gates_are_not_the_dense_model():
    dense = tiny().double()
    expected = logits(dense)
    mixture = grafts.apply(dense, [experts(renormalise=False, top_k=1)])
    assert (logits(mixture) - expected).abs().max() > 1e-3


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("attention", [None, "kv-expert"])
def test_a_one_hot_router_reproduces_its_expert(family, attention):
    models = [model.double() for model in branched(family=family)]
    if attention is None:  # then attention is averaged, so it must be the same
        for model in models[1:]:
            for ours, theirs in zip(decoder_layers(model), decoder_layers(models[0]), strict=True):
                ours.self_attn.load_state_dict(theirs.self_attn.state_dict())
    expected = [logits(model) for model in models]
    mixture = grafts.apply(models[0], [experts(top_k=1, attention=attention)], models=models[1:])
    for expert in range(3):
        always(mixture, expert)
        torch.testing.assert_close(logits(mixture), expected[expert], rtol=0, atol=1e-5)
    assert (expected[0] - expected[1]).abs().max() > 0.01


def test_undecided_attention_is_the_mean_of_its_experts():
    models = [model.double() for model in branched()]
    layers = [copy.deepcopy(decoder_layers(model)[0].self_attn) for model in models]
    x = torch.randn(2, 9, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    rotary = models[0].model.rotary_emb(x, torch.arange(9)[None])
    mask = torch.ones(9, 9, dtype=torch.bool).tril()[None, None]
    expected = torch.stack([layer(x, rotary, mask)[0] for layer in layers]).mean(0)
    graft = experts(attention="kv-expert", making=Making(router_std=0))
    mixture = grafts.apply(models[0], [graft], models=models[1:])
    torch.testing.assert_close(decoder_layers(mixture)[0].self_attn(x, rotary, mask)[0], expected)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("attention", ["kv-expert", "kv-shared"])
@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_attention_experts_equal_the_naive_reference(family, attention, implementation):
    models = [model.double() for model in branched(family=family)]
    models[0].set_attn_implementation(implementation)
    mixture = grafts.apply(models[0], [experts(attention=attention)], models=models[1:])
    layer = decoder_layers(mixture)[1].self_attn
    assert isinstance(layer, MixtureOfAttention)
    x = torch.randn(2, 11, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    rotary = mixture.model.rotary_emb(x, torch.arange(11)[None])
    mask = torch.ones(11, 11, dtype=torch.bool).tril()[None, None]
    if implementation == "eager":
        mask = torch.zeros(1, 1, 11, 11, dtype=torch.float64).masked_fill(~mask, -torch.inf)
    results = []
    for forward in (lambda x: layer(x, rotary, mask)[0], lambda x: naive_mixture(layer, x, rotary)):
        leaf = x.clone().requires_grad_()
        output = forward(leaf)
        results.append([output, *torch.autograd.grad(output.square().sum(), [leaf, *layer.parameters()])])
    for fast, slow in zip(*results, strict=True):
        loose = 1e-4 if implementation == "eager" else 1e-9  # eager has a softmax in float32
        torch.testing.assert_close(fast, slow, rtol=loose, atol=loose)


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_experts_are_their_sources_bit_for_bit_and_the_rest_is_the_mean(family):
    models = branched(family=family, norms=True)
    states = [{name: tensor.clone() for name, tensor in model.state_dict().items()} for model in models]
    mixture = grafts.apply(models[0], [experts(attention="kv-expert")], models=models[1:]).state_dict()
    for layer in range(3):
        prefix = f"model.layers.{layer}"
        for expert in range(3):
            for part in ("gate_proj", "up_proj", "down_proj"):
                made = mixture[f"{prefix}.mlp.experts.{expert}.{part}.weight"]
                assert torch.equal(made, states[expert][f"{prefix}.mlp.{part}.weight"])
            for part in ("q_proj", "k_proj", "v_proj"):
                made = mixture[f"{prefix}.self_attn.{part}.weight"].chunk(3)[expert]
                assert torch.equal(made, states[expert][f"{prefix}.self_attn.{part}.weight"])
            made = mixture[f"{prefix}.self_attn.o_proj.weight"].chunk(3, dim=1)[expert]
            assert torch.equal(made, states[expert][f"{prefix}.self_attn.o_proj.weight"])
    averaged = [name for name in states[0] if "norm" in name or "embed" in name]
    assert len(averaged) > 6
    for name in averaged:
        torch.testing.assert_close(mixture[name], torch.stack([state[name] for state in states]).mean(0))


def test_shared_keys_and_values_are_the_mean():
    models = branched()
    name = "model.layers.1.self_attn.v_proj.weight"
    expected = torch.stack([model.state_dict()[name] for model in models]).mean(0)
    mixture = grafts.apply(models[0], [experts(attention="kv-shared")], models=models[1:])
    torch.testing.assert_close(mixture.state_dict()[name], expected)


def test_the_seed_may_give_everything_but_experts():
    models = branched(norms=True)
    seed = {name: tensor.clone() for name, tensor in models[0].state_dict().items()}
    expert = models[1].state_dict()["model.layers.0.mlp.up_proj.weight"].clone()
    making = Making(first_is_expert=False, others="first")
    mixture = grafts.apply(models[0], [experts(2, making)], models=models[1:]).state_dict()
    assert torch.equal(mixture["model.layers.0.mlp.experts.0.up_proj.weight"], expert)
    assert all(torch.equal(mixture[name], tensor) for name, tensor in seed.items() if ".mlp." not in name)


def test_nothing_dropped_is_sparse_upcycling_and_dropping_changes_only_the_units_drawn():
    sparse = grafts.apply(tiny(), [experts()]).state_dict()
    none = grafts.apply(tiny(), [experts(making=WILD.model_copy(update={"drop": 0.0}))]).state_dict()
    assert all(torch.equal(sparse[name], none[name]) for name in sparse)
    dropped = grafts.apply(tiny(), [experts(making=WILD.model_copy(update={"drop": 0.25}))]).state_dict()
    units = []
    for expert in range(3):
        name = f"model.layers.0.mlp.experts.{expert}."
        gate, up = ((dropped[f"{name}{part}"] != sparse[f"{name}{part}"]).any(1) for part in PARTS[:2])
        down = (dropped[f"{name}{PARTS[2]}"] != sparse[f"{name}{PARTS[2]}"]).any(0)
        assert gate.sum() == 12 == round(0.25 * 48)
        assert torch.equal(gate, up)
        assert torch.equal(gate, down)
        units.append(gate)
    assert not torch.equal(units[0], units[1]), "other units in each expert"


PARTS = ("gate_proj.weight", "up_proj.weight", "down_proj.weight")


def test_what_was_not_dropped_keeps_its_function():
    mixture = grafts.apply(tiny().double(), [experts(making=Making(drop=0.5))])
    dense = decoder_layers(tiny().double())[0].mlp
    expert = decoder_layers(mixture)[0].mlp.experts[0]
    kept = (expert.gate_proj.weight == dense.gate_proj.weight).all(1)
    assert kept.sum() == 24
    x = torch.randn(5, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    outputs = []
    for part in (expert, dense):
        inner = part.act_fn(part.gate_proj(x)) * part.up_proj(x) * kept
        outputs.append(inner @ part.down_proj.weight.T)
    torch.testing.assert_close(*outputs)


def test_noise_sets_experts_apart():
    mixture = grafts.apply(tiny(), [experts(making=Making(noise=0.05))]).state_dict()
    weights = [mixture[f"model.layers.0.mlp.experts.{expert}.up_proj.weight"] for expert in range(3)]
    original = tiny().state_dict()["model.layers.0.mlp.up_proj.weight"]
    assert not torch.equal(weights[0], weights[1])
    assert (weights[0] - original).std().item() == pytest.approx(0.05 * original.std().item(), rel=0.1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_saved_is_what_is_read(family, kind, tmp_path):
    mixture = grafts.apply(tiny(family), [experts(**KINDS[kind])], models=branched(family=family)[1:])
    save_model(mixture, tmp_path, tokenizer_from=None)
    again = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    assert again.config.grafts == mixture.config.grafts
    assert {n: p.shape for n, p in again.named_parameters()} == {n: p.shape for n, p in mixture.named_parameters()}
    assert torch.equal(logits(again), logits(mixture))


@pytest.mark.parametrize("attention", ["kv-expert", "kv-shared"])
@pytest.mark.parametrize("family", FAMILIES)
def test_cached_steps_equal_the_whole_sequence(family, attention):
    mixture = grafts.apply(tiny(family), [experts(attention=attention)], models=branched(family=family)[1:])
    ids, whole = tokens(), logits(mixture)
    with torch.no_grad():
        first = mixture(ids[:, :11], use_cache=True)
        steps = [first.logits]
        for position in range(11, ids.shape[1]):
            steps.append(mixture(ids[:, position : position + 1], past_key_values=first.past_key_values).logits)
    torch.testing.assert_close(torch.cat(steps, dim=1), whole, rtol=0, atol=1e-4)
    heads = first.past_key_values.layers[1].keys.shape[1]
    assert heads == (6 if attention == "kv-expert" else 2), "key-value heads: N times, or once"


@pytest.mark.parametrize("attention", [None, "kv-expert", "kv-shared"])
def test_generate_with_beams_padding_and_without_a_cache_agree(attention):
    mixture = grafts.apply(tiny(), [experts(attention=attention)], models=branched()[1:])
    ids = tokens(2, 9)
    padded = torch.cat([torch.zeros(2, 3, dtype=torch.long), ids], dim=1)
    mask = (torch.arange(12) >= 3).long().expand(2, -1)
    options = {"max_new_tokens": 5, "do_sample": False}
    plain = mixture.generate(ids, **options)[:, 9:]
    assert torch.equal(mixture.generate(padded, attention_mask=mask, **options)[:, 12:], plain)
    assert torch.equal(mixture.generate(ids, use_cache=False, **options)[:, 9:], plain)
    beams = mixture.generate(ids, num_beams=3, use_cache=True, **options)
    assert torch.equal(beams, mixture.generate(ids, num_beams=3, use_cache=False, **options))


def test_router_logits_and_losses_come_as_in_transformers():
    mixture = grafts.apply(tiny().double(), [experts(attention="kv-expert")])
    ids = tokens()
    plain = mixture(ids, labels=ids)
    assert not hasattr(plain, "router_logits")
    full = mixture(ids, labels=ids, output_router_logits=True)
    assert torch.equal(plain.logits, full.logits)
    assert [each.shape for each in full.router_logits] == [(42, 3)] * 3
    assert [each.shape for each in full.attention_router_logits] == [(42, 3)] * 3
    z = torch.stack([each.logsumexp(-1).square().mean() for each in full.router_logits]).mean()
    torch.testing.assert_close(full.loss, plain.loss + 1e-2 * full.aux_loss + 1e-3 * z)
    full.loss.backward()
    assert all(layer.mlp.router.weight.grad.abs().sum() > 0 for layer in decoder_layers(mixture))
    mixture.config.base.output_router_logits = True
    assert mixture(ids).aux_loss is not None
    with pytest.raises(ValueError, match="return_dict"):
        mixture(ids, return_dict=False)


def test_a_copy_of_a_model_keeps_its_own_record():
    mixture = grafts.apply(tiny(), [experts(block="parallel")])
    other = copy.deepcopy(mixture)
    assert len(other(tokens(), output_router_logits=True).router_logits) == 3
    assert not hasattr(mixture(tokens()), "router_logits")
    assert (
        other.model.layers[0].mlp.record is other.model.layers[1].mlp.record is not mixture.model.layers[0].mlp.record
    )


def test_padding_does_not_count_in_the_losses():
    mixture = grafts.apply(tiny(), [experts()])
    ids = tokens(1, 9)
    padded = torch.cat([torch.zeros(1, 4, dtype=torch.long), ids], dim=1)
    mask = (torch.arange(13) >= 4).long()[None]
    alone = mixture(ids, output_router_logits=True).aux_loss
    torch.testing.assert_close(mixture(padded, attention_mask=mask, output_router_logits=True).aux_loss, alone)


@pytest.mark.parametrize("attention", [None, "kv-expert"])
def test_recomputing_activations_changes_no_gradient(attention):
    mixture = grafts.apply(tiny(), [experts(attention=attention)], models=branched()[1:]).train()
    grads = []
    for recompute in (False, True):
        if recompute:
            mixture.gradient_checkpointing_enable({"use_reentrant": False})
        mixture.zero_grad()
        mixture(tokens(), labels=tokens(), output_router_logits=True, use_cache=False).loss.backward()
        grads.append([parameter.grad.clone() for parameter in mixture.parameters()])
    for plain, again in zip(*grads, strict=True):
        torch.testing.assert_close(plain, again)


def test_a_capacity_drops_assignments_while_training_only():
    mixture = grafts.apply(tiny(), [experts(capacity=0.5)], models=branched()[1:])
    free = grafts.apply(tiny(), [experts()], models=branched()[1:])
    assert torch.equal(logits(mixture), logits(free))
    assert mixture(tokens(), output_router_logits=True).dropped_share is None
    trained = mixture.train()(tokens(), output_router_logits=True)
    assert 0.45 < trained.dropped_share.item() < 0.9
    roomy = grafts.apply(tiny(), [experts(capacity=3.0)]).train()(tokens(), output_router_logits=True)
    assert roomy.dropped_share.item() == 0


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_the_parallel_block_reads_one_input(family):
    mixture = grafts.apply(tiny(family).double(), [experts(block="parallel")])
    assert (logits(mixture) - logits(tiny(family).double())).abs().max() > 1e-3, "no serial model survives it"
    layer, x = decoder_layers(mixture)[0], torch.randn(1, 5, 32, dtype=torch.float64)
    kind = ("full_attention",) if family == "gemma3_text" else ()
    rotary = mixture.model.rotary_emb(x, torch.arange(5)[None], *kind)
    attended = layer.self_attn(layer.input_layernorm(x), position_embeddings=rotary, attention_mask=None)[0]
    if family == "llama":
        expected = x + attended + layer.mlp(layer.post_attention_layernorm(x))
    else:
        fed = layer.post_feedforward_layernorm(layer.mlp(layer.pre_feedforward_layernorm(x)))
        expected = x + layer.post_attention_layernorm(attended) + fed
    torch.testing.assert_close(layer(x, position_embeddings=rotary, attention_mask=None), expected)
    assert isinstance(layer, type(decoder_layers(tiny(family))[0])), "hidden states are still found by class"
    assert len(mixture(tokens(), output_hidden_states=True).hidden_states) == 4


def test_experts_go_beside_hybrid_heads(tmp_path):
    heads = HybridHeads(full_heads=((0, 1), None, ()), softmax=Softmax.teacher())
    hybrid = grafts.apply(tiny(), [heads])
    expected = logits(hybrid)
    both = grafts.apply(hybrid, [experts()])
    torch.testing.assert_close(logits(both), expected, rtol=0, atol=1e-5)
    save_model(both, tmp_path, tokenizer_from=None)
    assert torch.equal(logits(load_model(tmp_path, dtype=torch.float32)), logits(both))
    with pytest.raises(
        ValueError, match="attention experts are copies of plain attention, the model's is 'hybrid_heads'"
    ):
        grafts.apply(grafts.apply(tiny(), [heads]), [experts(attention="kv-expert")])
    with pytest.raises(ValueError, match="'hybrid_heads' cannot follow 'experts'"):
        grafts.apply(both, [heads])


def test_what_cannot_be_is_refused_before_anything_changes():
    for graft, reason in (
        (experts(split=5), "48 feed-forward units cannot be cut into 5"),
        (experts(3), "3 experts cannot come evenly from 2 models"),
        (experts(2), "mlp.down_proj.weight is \\(32, 48\\) in the first model, \\(32, 40\\) in model 1"),
    ):
        with pytest.raises(ValueError, match=reason):
            grafts.apply(model := tiny(), [graft], models=[tiny(intermediate_size=40)])
        assert set(model.state_dict()) == set(tiny().state_dict())
    with pytest.raises(ValueError, match="top_k is 4, there are 3 experts"):
        experts(top_k=4)
    with pytest.raises(ValueError, match="the model's feed_forward is already grafted"):
        grafts.apply(grafts.apply(tiny(), [experts()]), [experts()])


def test_the_number_of_parameters_is_that_of_the_formula():
    dense, width = tiny("mistral"), 32
    part = sum(parameter.numel() for parameter in decoder_layers(dense)[0].mlp.parameters())
    attention = sum(parameter.numel() for parameter in decoder_layers(dense)[0].self_attn.parameters())
    before = sum(parameter.numel() for parameter in dense.parameters())
    for fields, extra in ((KINDS["feed-forward"], 0), (KINDS["kv-expert"], 2 * attention + 3 * width)):
        mixture = grafts.apply(tiny("mistral"), [experts(**fields)])
        found = sum(parameter.numel() for parameter in mixture.parameters())
        assert found == before + 3 * (2 * part + 3 * width + extra)


def test_the_identity_of_the_graft_is_one():
    graft = experts(renormalise=False, capacity=0.5, block="parallel", making=Making(noise=0.1, drop=0.1), top_k=1)
    dense = tiny().double()
    expected = logits(dense)
    torch.testing.assert_close(logits(grafts.apply(dense, [graft.identity(dense.config)])), expected, rtol=0, atol=1e-6)
    assert graft.identity(dense.config).is_exact(1)
    assert not graft.is_exact(1)


def test_the_linears_of_experts_are_linears():
    mixture = grafts.apply(tiny(), [experts()])
    linears = [
        name for name, module in mixture.named_modules() if isinstance(module, nn.Linear) and ".experts." in name
    ]
    assert len(linears) == 3 * 3 * 3, "so quantisers and adapters find them"
