"""One tiny random model of each way that a `forward` can end: plain head, scaled or capped logits, hybrids, experts."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from transformers import PreTrainedModel

SIZES: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
HYBRID = {
    "layer_types": ["linear_attention", "full_attention"],
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "gemma2": ("Gemma2", {"final_logit_softcapping": 0.05, "sliding_window": 8}),
    "granite": ("Granite", {"logits_scaling": 8.0}),
    "cohere": ("Cohere", {"logit_scale": 0.25}),
    "qwen3_moe": ("Qwen3Moe", {**EXPERTS, "output_router_logits": True}),
    "qwen3_next": ("Qwen3Next", {**HYBRID, **EXPERTS, "shared_expert_intermediate_size": 16}),
    "mistral": ("Mistral", {"sliding_window": 8}),
    "falcon_mamba": ("FalconMamba", {"state_size": 4, "conv_kernel": 4, "time_step_rank": 4}),
}


def tiny(family: str, *, seed: int = 0, **changes: Any) -> PreTrainedModel:
    """A random float32 model of `family` in evaluation mode."""
    name, extra = FAMILIES[family]
    config = getattr(transformers, f"{name}Config")(**{**SIZES, **extra, **changes})
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return getattr(transformers, f"{name}ForCausalLM")(config).eval()
