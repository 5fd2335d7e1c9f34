"""A layer of attention experts: all of them read every token, and a router weighs what they say (arXiv 2408.08274).

The heads of the N experts run as one attention of N·H heads: one call, and one cache layer of any kind that holds
N·G key-value heads (each expert its own) or G (keys and values shared). Shapes: B rows, T tokens, C channels, H query
heads and G key-value heads of width D in an expert, R = H / G.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb, eager_attention_forward

from grafts.experts.feed_forward import Router
from grafts.experts.record import Record
from grafts.hybrid.branch import Teacher, like

AttentionExperts = Literal["kv-expert", "kv-shared"]


class MixtureOfAttention(nn.Module):
    """Takes the place of the attention layer `attention`; expert after expert in every projection.

    Parameters: `router.weight` [N, C], `q_proj` [N·H·D, C], `k_proj` and `v_proj` [N·G·D, C] or [G·D, C], `o_proj`
    [C, N·H·D] and, where the base has one, its bias `o_bias` [N, C]. Norms of queries and keys are the layer's.
    Attention weights are not returned.
    """

    is_causal = True

    def __init__(self, attention: nn.Module, num_experts: int, kind: AttentionExperts, record: Record) -> None:
        super().__init__()
        self.teacher = teacher = Teacher.of(attention)
        self.config, self.layer_idx, self.record = attention.config, teacher.layer, record
        self.head_dim, self.scaling, self.num_experts = teacher.head_dim, teacher.scaling, num_experts
        self.shares_kv = kind == "kv-shared"
        self.num_key_value_groups = teacher.heads_per_group * (num_experts if self.shares_kv else 1)
        channels, where = teacher.hidden_size, like(attention)
        width = num_experts * teacher.num_heads * self.head_dim
        kv_width = (1 if self.shares_kv else num_experts) * teacher.num_groups * self.head_dim
        self.router = Router(num_experts, attention.q_proj.weight)
        self.q_proj = nn.Linear(channels, width, bias=teacher.bias, **where)
        self.k_proj = nn.Linear(channels, kv_width, bias=teacher.bias, **where)
        self.v_proj = nn.Linear(channels, kv_width, bias=teacher.bias, **where)
        self.o_proj = nn.Linear(width, channels, bias=False, **where)
        has_bias = attention.o_proj.bias is not None
        self.o_bias = nn.Parameter(torch.zeros(num_experts, channels, **where)) if has_bias else None
        self.q_norm, self.k_norm = getattr(attention, "q_norm", None), getattr(attention, "k_norm", None)

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        attention_mask: Tensor | None = None,
        past_key_values: Cache | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, None]:
        """The call of every supported base: hidden states [B, T, C] to the layer's output [B, T, C]."""
        logits_BTN = self.router(hidden_states)
        self.record.mixed(logits_BTN.flatten(0, 1))
        heads_BTNX = self._attend(hidden_states, position_embeddings, attention_mask, past_key_values, **kwargs)
        gates_BTN = logits_BTN.softmax(-1)
        mixed = (heads_BTNX * gates_BTN[..., None]).to(heads_BTNX.dtype)
        output = self.o_proj(mixed.flatten(2))
        return (output if self.o_bias is None else output + (gates_BTN.to(output.dtype) @ self.o_bias)), None

    def _attend(
        self, x_BTC: Tensor, rotary: tuple[Tensor, Tensor], mask: Tensor | None, cache: Cache | None, **kwargs: Any
    ) -> Tensor:
        """What the heads of each expert read, [B, T, N, H·D]."""
        k = self.teacher.heads(x_BTC, self.k_proj, self.k_norm).transpose(1, 2)
        v = self.teacher.heads(x_BTC, self.v_proj).transpose(1, 2)
        q = self._by_group(self.teacher.heads(x_BTC, self.q_proj, self.q_norm)).transpose(1, 2)
        q, k = apply_rotary_pos_emb(q, k, *rotary)
        if cache is not None:
            k, v = cache.update(k, v, self.layer_idx)
        kind = self.config._attn_implementation
        attend: Callable[..., Any] = ALL_ATTENTION_FUNCTIONS.get_interface(kind, eager_attention_forward)
        dropout, window = self.teacher.dropout if self.training else 0.0, self.teacher.window
        output, _ = attend(self, q, k, v, mask, dropout=dropout, scaling=self.scaling, sliding_window=window, **kwargs)
        return self._by_expert(output)

    def _by_group(self, q_BTQD: Tensor) -> Tensor:
        """Queries in the order of the keys they read: with shared keys, those of all experts to a key together."""
        if not self.shares_kv:
            return q_BTQD
        return q_BTQD.unflatten(2, (self.num_experts, self.teacher.num_groups, -1)).transpose(2, 3).flatten(2, 4)

    def _by_expert(self, output_BTQD: Tensor) -> Tensor:
        """The inverse of `_by_group`, [B, T, N, H·D]."""
        if not self.shares_kv:
            return output_BTQD.unflatten(2, (self.num_experts, -1)).flatten(3)
        grouped = output_BTQD.unflatten(2, (self.teacher.num_groups, self.num_experts, -1))
        return grouped.transpose(2, 3).flatten(3)


def naive_mixture(layer: MixtureOfAttention, x_BTC: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
    """Reference for causal attention without cache or window: one expert and one head at a time, written out."""
    num_heads, num_groups, width = layer.teacher.num_heads, layer.teacher.num_groups, layer.head_dim
    gates_BTN, total = layer.router(x_BTC).softmax(-1).to(x_BTC.dtype), torch.zeros_like(x_BTC)
    q = layer.teacher.heads(x_BTC, layer.q_proj, layer.q_norm).transpose(1, 2)
    k = layer.teacher.heads(x_BTC, layer.k_proj, layer.k_norm).transpose(1, 2)
    v = layer.teacher.heads(x_BTC, layer.v_proj).transpose(1, 2)
    q, k = apply_rotary_pos_emb(q, k, *rotary)
    hidden = torch.ones(x_BTC.shape[1], x_BTC.shape[1], dtype=torch.bool, device=x_BTC.device).triu(1)
    for expert in range(layer.num_experts):
        first = expert * num_heads * width
        for head in range(num_heads):
            group = head // (num_heads // num_groups) + (0 if layer.shares_kv else expert * num_groups)
            scores = q[:, expert * num_heads + head] @ k[:, group].transpose(-1, -2) * layer.scaling
            read_BTD = scores.masked_fill(hidden, -torch.inf).softmax(-1) @ v[:, group]
            columns = layer.o_proj.weight[:, first + head * width : first + (head + 1) * width]
            total = total + gates_BTN[..., expert, None] * (read_BTD @ columns.T)
        if layer.o_bias is not None:
            total = total + gates_BTN[..., expert, None] * layer.o_bias[expert]
    return total
