"""A tiny random model of each base that grafts support, with biases, QK-norms and sliding layers where it has them."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from transformers import PreTrainedModel

SIZES: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
SLIDING = {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
FAMILIES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", "LlamaForCausalLM", {"tie_word_embeddings": True, "attention_bias": True}),
    "mistral": ("MistralConfig", "MistralForCausalLM", {"sliding_window": 8}),
    "qwen2": ("Qwen2Config", "Qwen2ForCausalLM", {"use_sliding_window": True, **SLIDING}),
    "qwen3": ("Qwen3Config", "Qwen3ForCausalLM", {}),
    "gemma3_text": (
        "Gemma3TextConfig",
        "Gemma3ForCausalLM",
        {**SLIDING, "final_logit_softcapping": 5.0, "query_pre_attn_scalar": 13, "tie_word_embeddings": True},
    ),
}


def tiny(family: str = "llama", *, seed: int = 0, **changes: Any) -> PreTrainedModel:
    """A random float32 model in evaluation mode, every parameter of it (norms and biases too) away from its default."""
    config_name, model_name, extra = FAMILIES[family]
    config = getattr(transformers, config_name)(**{**SIZES, **extra, **changes})
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        model = getattr(transformers, model_name)(config).eval()
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.generation_config.eos_token_id = None  # generation goes on, whatever these weights say
    return model


def tokens(rows: int = 2, length: int = 21, *, seed: int = 0) -> torch.Tensor:
    return torch.randint(3, SIZES["vocab_size"], (rows, length), generator=torch.Generator().manual_seed(seed))
