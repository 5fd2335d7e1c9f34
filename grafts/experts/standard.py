"""Which class of `transformers` a mixture is, where it is one: saved as that, it needs nothing of this package.

Experts over Llama and Mistral are Mixtral, over Qwen3 they are Qwen3-MoE. Over Qwen2 they are no standard class, since
Qwen2-MoE always adds a shared expert, and over Gemma 3 there is none.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from transformers import MixtralConfig, PretrainedConfig, Qwen3MoeConfig

from grafts.graft import Graft

if TYPE_CHECKING:
    from grafts.experts.graft import Experts

SAME: Final = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "hidden_act",
    "max_position_embeddings",
    "initializer_range",
    "rms_norm_eps",
    "use_cache",
    "pad_token_id",
    "bos_token_id",
    "eos_token_id",
    "tie_word_embeddings",
    "rope_parameters",
    "attention_dropout",
    "dtype",
)
"""Fields that mean the same in the base and in its mixture."""
MIXTRAL_NAMES: Final = {"router": "gate", "experts": "experts", "gate": "w1", "down": "w2", "up": "w3"}


def standard_config(base: PretrainedConfig, earlier: Sequence[Graft], graft: Experts) -> PretrainedConfig | None:
    """The config of the standard class that computes what `graft` on `base` does, or None where there is none."""
    if earlier or graft.attention or graft.block == "parallel" or graft.capacity is not None:
        return None
    if base.model_type == "qwen3":
        return _qwen3_moe(base, graft)
    return _mixtral(base, graft) if base.model_type in ("llama", "mistral") and graft.renormalise else None


def standard_coefficient(balance_weight: float, top_k: int) -> float:
    """`router_aux_loss_coef` that weighs as `balance_weight` does: the standard load-balance loss of even loads is
    `top_k`, the experts of a token, where ours is 1.
    """
    return balance_weight / top_k


def standard_name(config: PretrainedConfig, name: str) -> str:
    """The name, in a checkpoint of the standard class of `config`, of the mixture's tensor `name`."""
    if config.model_type != "mixtral":
        return name.replace(".mlp.router.", ".mlp.gate.")
    name = re.sub(r"\.mlp\.(router|experts)\.", lambda m: f".block_sparse_moe.{MIXTRAL_NAMES[m[1]]}.", name)
    return re.sub(r"(experts\.\d+)\.(gate|up|down)_proj\.", lambda m: f"{m[1]}.{MIXTRAL_NAMES[m[2]]}.", name)


def _mixtral(base: PretrainedConfig, graft: Experts) -> PretrainedConfig | None:
    if getattr(base, "attention_bias", False) or getattr(base, "mlp_bias", False):
        return None
    return MixtralConfig(
        **_same(base),
        architectures=["MixtralForCausalLM"],
        intermediate_size=base.intermediate_size // graft.split,
        sliding_window=getattr(base, "sliding_window", None),
        num_local_experts=graft.num_experts * graft.split,
        num_experts_per_tok=graft.top_k * graft.split,
        router_aux_loss_coef=standard_coefficient(graft.balance_weight, graft.top_k * graft.split),
    )


def _qwen3_moe(base: PretrainedConfig, graft: Experts) -> PretrainedConfig | None:
    if "sliding_attention" in (base.layer_types or ()):
        return None
    return Qwen3MoeConfig(
        **_same(base),
        architectures=["Qwen3MoeForCausalLM"],
        attention_bias=base.attention_bias,
        intermediate_size=base.intermediate_size,
        moe_intermediate_size=base.intermediate_size // graft.split,
        num_experts=graft.num_experts * graft.split,
        num_experts_per_tok=graft.top_k * graft.split,
        norm_topk_prob=graft.renormalise,
        router_aux_loss_coef=standard_coefficient(graft.balance_weight, graft.top_k * graft.split),
    )


def _same(base: PretrainedConfig) -> dict[str, Any]:
    return {name: getattr(base, name) for name in SAME if getattr(base, name, None) is not None}
