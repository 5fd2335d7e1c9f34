"""Attention in which some heads see everything and the others a window and the first tokens: no cache, no kernel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, PreTrainedModel

NAME = "heads_in_windows"


class HeadWindows:
    """Sets what each head of `model` sees, by its attention masks alone; the weights stay as they are."""

    def __init__(self, model: PreTrainedModel, window: int, sinks: int) -> None:
        """Heads that are not kept see the last `window` tokens, themselves included, and the first `sinks`."""
        self.window, self.sinks = window, sinks
        self.kept: Mapping[int, Sequence[int] | None] = {}
        """For each layer, the heads that see everything; None, or no entry: all of them."""
        AttentionInterface.register(NAME, self._attend)
        model.set_attn_implementation(NAME)

    def _attend(
        self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, _mask: Any, *, scaling: float, **_: Any
    ) -> tuple[Tensor, None]:
        kept = self.kept.get(module.layer_idx)
        everything, near = visible(query.shape[2], self.window, self.sinks)
        num_heads = query.shape[1]
        full = set(range(num_heads) if kept is None else kept)
        mask_HTT = torch.stack([everything if head in full else near for head in range(num_heads)])
        readers = num_heads // key.shape[1]
        key, value = key.repeat_interleave(readers, 1), value.repeat_interleave(readers, 1)
        output = scaled_dot_product_attention(query, key, value, mask_HTT[None], scale=scaling)
        return output.transpose(1, 2).contiguous(), None


@lru_cache(maxsize=8)
def visible(num_tokens: int, window: int, sinks: int) -> tuple[Tensor, Tensor]:
    """What each position [T, T] may read: everything before it; a window and the first tokens."""
    keys = torch.arange(num_tokens)
    queries = keys[:, None]
    past = keys <= queries
    return past, past & ((keys > queries - window) | (keys < sinks))
