"""The softmax heads of a hybrid layer, over the whole past or a window of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb, eager_attention_forward

from grafts.hybrid.branch import HeadBranch, Teacher, output_gate
from grafts.hybrid.cache import Branch
from grafts.hybrid.heads import blocks, first_tokens, groups_of, length_scale, window_mask
from grafts.hybrid.settings import Softmax


class SoftmaxBranch(HeadBranch):
    """Softmax attention for some heads, over the whole past or its last `window` tokens and its first `sinks`."""

    is_causal = True

    def __init__(
        self, attention: nn.Module, heads: Sequence[int], settings: Softmax, window: int | None, sinks: int = 0
    ) -> None:
        teacher = Teacher.of(attention)
        super().__init__(attention, heads, groups_of(heads, teacher.heads_per_group))
        self.settings, self.config, self.layer_idx = settings, attention.config, teacher.layer
        self.branch: Branch = "full" if window is None else "window"
        self.window = window or teacher.window
        """What hides the distant past from these heads: their own window, or the one their layer always had."""
        self.sinks = sinks
        """First tokens of the text that these heads see besides a window."""
        self.head_dim, self.scaling = teacher.head_dim, teacher.scaling
        readers = [self.groups.index(head // teacher.heads_per_group) for head in self.heads]
        even = len(self.heads) // len(self.groups)
        self.readers = None if readers == [i // even for i in range(len(self.heads))] else readers
        self.num_key_value_groups = even if self.readers is None else 1
        self.gate_proj = output_gate(attention, len(heads)) if settings.output_gate else None

    def forward(
        self,
        x_BTC: Tensor,
        rotary: tuple[Tensor, Tensor],
        positions: Tensor,
        mask: Tensor | None,
        cache: Cache | None,
        **kwargs: Any,
    ) -> Tensor:
        """Outputs [B, T, H, D]; `mask` is the layer's, `positions` [B or 1, T] the absolute ones."""
        q = self.teacher.heads(x_BTC, self.q_proj, self.q_norm).transpose(1, 2)
        k = self.teacher.heads(x_BTC, self.k_proj, self.k_norm).transpose(1, 2)
        v = self.teacher.heads(x_BTC, self.v_proj).transpose(1, 2)
        if self.settings.rope:
            q, k = apply_rotary_pos_emb(q, k, *rotary)
        if self.settings.length_scale is not None:
            q = q * length_scale(positions, self.settings.length_scale).to(q.dtype)[:, None, :, None]
        keys = torch.arange(k.shape[2], device=k.device)
        if cache is not None:
            k, v = cache.update(k, v, self.layer_idx, branch=self.branch, padding=self._padding(mask))
            keys = cache.layers[self.layer_idx].columns(self.branch, k)
        if self.readers is not None:
            k, v = k[:, self.readers], v[:, self.readers]
        output = self._attend(q, k, v, keys, mask, **kwargs)
        return output if self.gate_proj is None else output * torch.sigmoid(self.teacher.heads(x_BTC, self.gate_proj))

    def _padding(self, mask: Tensor | None) -> int:
        """Columns before the text of the row whose last text begins last; of no use without sinks."""
        return int(first_tokens(mask[:, :, -1:]).max()) if self.sinks and mask is not None else 0

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, keys: Tensor, mask: Tensor | None, **kwargs: Any) -> Tensor:
        kind = self.config._attn_implementation
        is_flash = kind is not None and "flash" in kind
        if is_flash and self.sinks:
            raise ValueError(
                "flash attention has no windows that keep the first tokens in sight (`sinks`): "
                "set the attention implementation to sdpa or eager"
            )
        attend: Callable[..., Any] = ALL_ATTENTION_FUNCTIONS.get_interface(kind, eager_attention_forward)
        dropout = self.teacher.dropout if self.training else 0.0
        attend = partial(attend, self, dropout=dropout, scaling=self.scaling, **kwargs)
        if self.branch == "window" and not is_flash:
            return self._attend_in_blocks(attend, q, k, v, keys, mask)
        if self.branch == "window" and mask is not None:
            mask = window_mask(mask, q.shape[2], keys, self.window)
        window = self.window if is_flash else None  # the masks of the others have it
        return attend(q, k, v, mask, sliding_window=window)[0]

    def _attend_in_blocks(
        self, attend: Callable[..., Any], q: Tensor, k: Tensor, v: Tensor, keys: Tensor, mask: Tensor | None
    ) -> Tensor:
        outputs = []
        starts = first_tokens(mask) if self.sinks and mask is not None else None
        for block in blocks(q.shape[2], keys, starts, self.window, self.sinks):
            own = starts[:, block.queries] if starts is not None else None
            seen = window_mask(block.of(mask), block.num_queries, keys[block.keys], self.window, self.sinks, own)
            if self.config._attn_implementation == "eager" and seen is not None and seen.dtype == torch.bool:
                seen = torch.zeros_like(seen, dtype=q.dtype).masked_fill(~seen, torch.finfo(q.dtype).min)
            near = (q[:, :, block.queries], k[:, :, block.keys], v[:, :, block.keys])
            outputs.append(attend(*near, seen, sliding_window=None)[0])
        return torch.cat(outputs, dim=1)
