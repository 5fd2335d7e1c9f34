from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from grafts.depth import keep_layers, num_kept_layers, pruned_config, uniform_layers
from grafts.loader import save_model

SIZES = {
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 6,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
FAMILIES = {
    "llama": (LlamaForCausalLM, LlamaConfig, {"tie_word_embeddings": True}),
    "qwen2": (
        Qwen2ForCausalLM,
        Qwen2Config,
        {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 3, "tie_word_embeddings": False},
    ),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config, {"head_dim": 8}),
}
IDS = torch.arange(24).view(2, 12) % 64


@pytest.fixture(params=FAMILIES)
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    kind, config, extra = FAMILIES[request.param]
    torch.manual_seed(0)
    return kind(config(**SIZES, **extra)).eval()


def logits(model: PreTrainedModel) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits


def test_keeping_every_layer_is_the_identity_to_the_bit(model: PreTrainedModel):
    whole = keep_layers(model, range(6))
    assert torch.equal(logits(whole), logits(model))
    assert whole.config.to_dict() == {**model.config.to_dict(), "dtype": "float32"}


def test_a_pruned_model_skips_the_other_layers(model: PreTrainedModel):
    """The same numbers as the whole model gives when its dropped layers hand their input on."""
    layers = [0, 2, 5]
    pruned = keep_layers(model, layers)
    for index, layer in enumerate(model.model.layers):
        if index not in layers:
            layer.forward = lambda hidden_states, *args, **kwargs: hidden_states
    assert torch.equal(logits(pruned), logits(model))


def test_it_shares_no_memory_with_its_parent(model: PreTrainedModel):
    before = logits(model)
    pruned = keep_layers(model, [0, 5])
    with torch.no_grad():
        for parameter in pruned.parameters():
            parameter.zero_()
    assert torch.equal(logits(model), before)


def test_it_is_saved_as_the_standard_class_and_generates_with_a_cache(model: PreTrainedModel, tmp_path: Path):
    pruned = keep_layers(model, [0, 3, 5])
    save_model(pruned, tmp_path, tokenizer_from=None)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(loaded) is type(model)
    assert torch.equal(logits(loaded), logits(pruned))
    assert [layer.self_attn.layer_idx for layer in loaded.model.layers] == [0, 1, 2]
    options = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(loaded.generate(IDS, **options), loaded.generate(IDS, **options, use_cache=False))


def test_lists_of_the_config_are_cut_with_the_layers():
    config = Qwen2Config(**SIZES, use_sliding_window=True, sliding_window=4, max_window_layers=3)
    assert pruned_config(config, [0, 1, 5]).layer_types == ["full_attention", "full_attention", "sliding_attention"]
    assert len(config.layer_types) == 6


def test_dtype_and_ties_survive():
    model = LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=True)).to(torch.bfloat16)
    pruned = keep_layers(model, [0, 5])
    assert pruned.dtype == torch.bfloat16
    assert pruned.lm_head.weight is pruned.model.embed_tokens.weight


@pytest.mark.parametrize("layers", [[], [1, 0], [0, 0, 5], [0, 6], [-1, 5]])
def test_impossible_layers_are_refused(layers):
    with pytest.raises(ValueError, match="layers 0 to 5"):
        keep_layers(LlamaForCausalLM(LlamaConfig(**SIZES)), layers)


@given(num_layers=st.integers(2, 200), share=st.floats(0.01, 1))
def test_uniform_layers_are_spread_evenly(num_layers: int, share: float):
    num_kept = num_kept_layers(num_layers, share)
    layers = uniform_layers(num_layers, num_kept)
    gaps = [after - before for before, after in pairwise(layers)]
    assert (layers[0], layers[-1], len(layers)) == (0, num_layers - 1, num_kept)
    assert max(gaps) - min(gaps) <= 1
    assert min(gaps) >= 1


def test_known_choices():
    assert uniform_layers(30, 4) == [0, 10, 19, 29]
    assert uniform_layers(6, 6) == [0, 1, 2, 3, 4, 5]
    assert num_kept_layers(30, 2 / 3) == 20
    with pytest.raises(ValueError, match="1 of 6"):
        uniform_layers(6, 1)
