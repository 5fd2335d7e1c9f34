"""One hybrid attention layer: softmax and linear heads side by side on the same input, fused by head."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache

from grafts.hybrid.branch import HeadBranch, Teacher
from grafts.hybrid.cache import HybridCacheLayer, claim, key_value_bytes, key_value_store
from grafts.hybrid.deltanet import DeltaNetBranch
from grafts.hybrid.heads import join, normalise
from grafts.hybrid.settings import Softmax
from grafts.hybrid.softmax import SoftmaxBranch

if TYPE_CHECKING:
    from grafts.hybrid.graft import HybridHeads


class HybridAttention(nn.Module):
    """Takes the place of the attention layer `attention`, whose heads `full` go on reading everything.

    Parameters: `full.*`, `linear.*` or `window.*` for the branches that have heads, `gain` [H] for the fusion (one
    scalar a head), and `o_proj`, the teacher's own module. Attention weights are not returned.
    """

    def __init__(self, attention: nn.Module, full: Sequence[int], graft: HybridHeads) -> None:
        super().__init__()
        self.teacher = teacher = Teacher.of(attention)
        self.layer_idx, self.eps = teacher.layer, graft.eps
        others = [head for head in range(teacher.num_heads) if head not in set(full)]
        self.full = SoftmaxBranch(attention, full, graft.softmax, window=None) if full else None
        is_linear = graft.others == "gated_deltanet"
        self.linear = DeltaNetBranch(attention, others, graft.deltanet) if others and is_linear else None
        self.window = None
        if others and not is_linear:
            window = min(graft.window, teacher.window or graft.window)
            sinks = graft.sinks if teacher.window is None else 0
            self.window = SoftmaxBranch(attention, others, Softmax.teacher(), window, sinks)
        weight = attention.q_proj.weight
        gain = torch.ones(teacher.num_heads, device=weight.device, dtype=weight.dtype)
        self.gain = nn.Parameter(gain) if graft.normalise else None
        self.o_proj = attention.o_proj

    @property
    def branches(self) -> list[HeadBranch]:
        """Those that have heads."""
        return [branch for branch in (self.full, self.window, self.linear) if branch is not None]

    @torch.no_grad()
    def copy_weights(self, attention: nn.Module, rms_H: Tensor | None = None) -> None:
        """Reuse the projections of `attention`; `rms_H`, mean root mean square of its heads' outputs, starts `gain`."""
        for branch in self.branches:
            branch.copy_projections(attention)
        if self.gain is not None and rms_H is not None:
            self.gain.copy_(rms_H)

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        attention_mask: Tensor | None = None,
        past_key_values: Cache | None = None,
        position_ids: Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, None]:
        """The call of every supported base: hidden states [B, T, C] to the layer's output [B, T, C]."""
        held = claim(past_key_values, self.layer_idx, self.new_cache) if past_key_values is not None else None
        positions = self._positions(hidden_states, held) if position_ids is None else position_ids
        heads = []
        for softmax in (self.full, self.window):
            if softmax is not None:
                output = softmax(
                    hidden_states, position_embeddings, positions, attention_mask, past_key_values, **kwargs
                )
                heads.append((softmax.heads, output))
        if self.linear is not None:
            heads.append((self.linear.heads, self.linear(hidden_states, position_embeddings, attention_mask, held)))
        if held is not None:
            held.advance(hidden_states.shape[1])
        return self.fuse(join(heads)), None

    def fuse(self, heads_BTHD: Tensor) -> Tensor:
        """The layer's output [B, T, C] from those of its heads, in the teacher's order."""
        if self.gain is not None:
            heads_BTHD = normalise(heads_BTHD, self.gain, self.eps)
        return self.o_proj(heads_BTHD.flatten(2))

    def new_cache(self) -> HybridCacheLayer:
        """An empty cache layer for this layer's branches."""
        stores = {
            branch.branch: key_value_store(branch.window, branch.sinks)
            for branch in (self.full, self.window)
            if branch is not None
        }
        return HybridCacheLayer(self.teacher.window, stores)

    def cache_bytes(self, batch_size: int, num_tokens: int, dtype: torch.dtype) -> int:
        """Bytes that the layer keeps for `batch_size` rows of `num_tokens` tokens, keys and values in `dtype`."""
        kept, head_dim = 0, self.teacher.head_dim
        for softmax in (self.full, self.window):
            if softmax is not None:
                groups = len(softmax.groups)
                kept += key_value_bytes(groups, head_dim, dtype, num_tokens, softmax.window, softmax.sinks)
        if self.linear is not None and num_tokens:
            wide = max(dtype.itemsize, torch.float32.itemsize)
            kept += len(self.linear.heads) * head_dim**2 * wide
            if (conv := self.linear.conv) is not None:
                kept += conv.in_channels * (conv.kernel_size[0] - 1) * dtype.itemsize
        return batch_size * kept

    def _positions(self, hidden_states: Tensor, held: HybridCacheLayer | None) -> Tensor:
        start = held.num_tokens if held is not None else 0
        return torch.arange(start, start + hidden_states.shape[1], device=hidden_states.device)[None]
