"""Head effects: equal to whole forward passes with hooks, and the identities that hold whatever the weights."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import transformers
from torch import Tensor, nn
from transformers import PreTrainedModel

from grafts.bases import BASES
from stages.training.checks import SUPPORTED
from stages.transfer.attribution import Attribution
from stages.transfer.bench import Bench
from stages.transfer.heads import HeadShape
from stages.transfer.patching import Patching, Replay, Trial
from stages.transfer.probing import Pair
from stages.transfer.recording import Body
from tests.transfer.naive import Naive, Texts

SHAPE = HeadShape(num_layers=3, num_heads=4, num_groups=2)
SIZES = {
    "vocab_size": 64,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": SHAPE.num_layers,
    "num_attention_heads": SHAPE.num_heads,
    "num_key_value_heads": SHAPE.num_groups,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "sliding_window": 8,
}
CONFIGS = {
    "gemma3_text": ("Gemma3TextConfig", {"final_logit_softcapping": 5.0}),
    "llama": ("LlamaConfig", {"attention_bias": True}),
    "mistral": ("MistralConfig", {}),
    "qwen2": ("Qwen2Config", {}),
    "qwen3": ("Qwen3Config", {"tie_word_embeddings": True}),
}
TARGETS = (26, 27, 29)
WRONG = (11, 12, 13)


def model_of(model_type: str, *, seed: int = 0) -> PreTrainedModel:
    """Weights far larger than at initialisation, so that heads matter; float64, so that equal means equal."""
    name, extra = CONFIGS[model_type]
    config = getattr(transformers, name)(**SIZES, **extra)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        model = transformers.AutoModelForCausalLM.from_config(config).double().eval()
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * (0.4 if parameter.ndim > 1 else 0.2) + (parameter.ndim == 1))
    return model


def pair() -> Pair:
    ids = torch.randint(3, 64, (30,), generator=torch.Generator().manual_seed(3)).tolist()
    other = list(ids)
    other[9], other[10], other[17] = 7, 8, 9
    return Pair(tuple(ids), tuple(other), TARGETS, WRONG)


def trial_of(model: PreTrainedModel) -> tuple[Body, Trial]:
    body = Body(model, SHAPE)
    return body, Bench(body, decay=0.9, require_correct=False, least_drop=1.0).trial(pair())


def naive_of(model: PreTrainedModel) -> Naive:
    texts = pair()
    columns = [(texts.ids[place], wrong) for place, wrong in zip(TARGETS, WRONG, strict=True)]
    return Naive(model, Texts(list(texts.ids), list(texts.other), [place - 1 for place in TARGETS], columns))


def mask(*heads: tuple[int, int]) -> Tensor:
    marked = torch.zeros(SHAPE.num_layers, SHAPE.num_heads, dtype=torch.bool)
    for layer, head in heads:
        marked[layer, head] = True
    return marked


LATE, MIDDLE = mask((2, 0), (2, 3), (1, 1)), mask((1, 1), (1, 2))


def test_every_supported_type_is_tested_and_can_be_converted():
    assert set(CONFIGS) == set(SUPPORTED) == set(BASES)


@pytest.mark.parametrize("model_type", SUPPORTED)
@pytest.mark.parametrize("path", [[], [LATE], [MIDDLE, LATE]], ids=["received", "sent", "sent in two steps"])
def test_patching_is_what_whole_forward_passes_give(model_type: str, path: list[Tensor]):
    model = model_of(model_type)
    naive, (body, trial) = naive_of(model), trial_of(model)
    assert trial.drop == pytest.approx(naive.clean_score - naive.other_score, rel=1e-9)
    expected = [
        [naive.sent(layer, head, path) if path else naive.received(layer, head) for head in range(SHAPE.num_heads)]
        for layer in range(SHAPE.num_layers)
    ]
    for batch_tokens in (1, 60, 10_000):
        patching = Patching(body, batch_tokens)
        found = patching.sent(trial, path) if path else patching.received(trial)
        assert found.abs().max() > 1e-4, "there is something to compare"
        torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-8, atol=1e-10)


def test_patching_a_head_with_itself_does_nothing():
    body, trial = trial_of(model_of("qwen3"))
    same = replace(trial, other=trial.clean.heads)
    for effects in (Patching(body, 10_000), Attribution(body)):
        assert not effects.received(same).any()
        assert not effects.sent(same, [MIDDLE, LATE]).any()


@pytest.mark.parametrize("model_type", SUPPORTED)
def test_all_heads_together_are_the_whole_difference(model_type: str):
    """The tokens that predict are the same in both texts, so attention alone brings the difference to them."""
    body, trial = trial_of(model_of(model_type))
    whole = {layer: body.projected(layer, trial.exchange(layer, trial.reads))[None] for layer in range(3)}
    with torch.no_grad():
        assert Replay(body, trial).score(whole).item() == pytest.approx(trial.other_score, rel=1e-9)
        part = {layer: change for layer, change in whole.items() if layer != 1}
        assert Replay(body, trial).score(part).item() != pytest.approx(trial.other_score, rel=1e-3)


def test_nothing_reacts_after_the_last_layer():
    model = model_of("llama")
    naive, (body, trial) = naive_of(model), trial_of(model)
    received = Patching(body, 10_000).received(trial)
    total = torch.tensor([[naive.total(layer, head) for head in range(4)] for layer in range(3)], dtype=torch.float64)
    torch.testing.assert_close(received[2], total[2], rtol=1e-8, atol=1e-10)
    assert (received[:2] - total[:2]).abs().max() > 1e-3, "earlier layers are reacted to"


def test_without_feed_forward_and_norm_the_received_effects_add_up_to_one():
    model = model_of("llama")
    for layer in model.model.layers:
        nn.init.zeros_(layer.mlp.down_proj.weight)
    with_norm = sum_received(model)
    model.model.norm = nn.Identity()
    assert sum_received(model) == pytest.approx(1, abs=1e-9)
    assert with_norm != pytest.approx(1, abs=1e-3)


def sum_received(model: PreTrainedModel) -> float:
    body, trial = trial_of(model)
    return Patching(body, 10_000).received(trial).sum().item()


def test_nobody_sends_to_nobody():
    body, trial = trial_of(model_of("llama"))
    first_layer, nothing = mask((0, 1)), mask()
    for effects in (Patching(body, 10_000), Attribution(body)):
        for listening in (first_layer, nothing):
            assert not effects.sent(trial, [listening]).any()
        assert not effects.sent(trial, [LATE])[2].any(), "the last layer has nobody after it"


@pytest.mark.parametrize("model_type", SUPPORTED)
def test_attribution_is_the_slope_of_patching(model_type: str):
    """Central differences of exchanges a thousandth as large (norms compute in float32, so not smaller)."""
    body, trial = trial_of(model_of(model_type))
    patching, attribution = Patching(body, 10_000), Attribution(body)
    for path in ([], [LATE], [MIDDLE, LATE]):
        slope = attribution.sent(trial, path) if path else attribution.received(trial)
        ahead, behind = (
            patching.sent(towards(trial, part), path) if path else patching.received(towards(trial, part))
            for part in (1e-3, -1e-3)
        )
        assert slope.abs().max() > 1e-4
        torch.testing.assert_close((ahead - behind) / 2e-3, slope, rtol=0, atol=0.02 * slope.abs().max().item())


def towards(trial: Trial, part: float) -> Trial:
    both = zip(trial.clean.heads, trial.other, strict=True)
    return replace(trial, other=[clean + part * (other - clean) for clean, other in both])


def test_the_model_is_as_it_was():
    model = model_of("gemma3_text")
    ids = torch.tensor([pair().ids])
    before = model(input_ids=ids).logits
    body, trial = trial_of(model)
    for effects in (Patching(body, 10_000), Attribution(body)):
        effects.sent(trial, [LATE])
    assert torch.equal(model(input_ids=ids).logits, before)
    assert not any("forward" in vars(module) for module in model.modules())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
