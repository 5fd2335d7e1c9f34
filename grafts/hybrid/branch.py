"""What the branches of a hybrid layer have in common: projections made from rows of the teacher's.

A branch holds the heads it has as whole projections ("query decomposition", arXiv 2606.20097). All branches read the
same normalised hidden states and give the outputs of their heads, before `o_proj`.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from grafts.hybrid.cache import key_value_bytes
from grafts.hybrid.heads import rows_of

GATE_BIAS = 6.0
"""Where output gates start: sigmoid(6) is 0.9975, as good as open and still trainable."""


@dataclass(frozen=True)
class Teacher:
    """The measures of an attention layer of `transformers`."""

    layer: int
    hidden_size: int
    num_heads: int
    num_groups: int
    head_dim: int
    scaling: float
    dropout: float
    bias: bool
    window: int | None
    """The layer's sliding window in tokens, itself included, or None."""

    @property
    def heads_per_group(self) -> int:
        """Query heads that share one key-value head."""
        return self.num_heads // self.num_groups

    def heads(self, x_BTC: Tensor, projection: nn.Linear, norm: nn.Module | None = None) -> Tensor:
        """The heads [B, T, n, D] that `projection` makes of `x_BTC`, normalised."""
        heads = projection(x_BTC).unflatten(-1, (-1, self.head_dim))
        return heads if norm is None else norm(heads)

    def cache_bytes(self, num_tokens: int, dtype: torch.dtype) -> int:
        """Bytes that the layer keeps of one row of `num_tokens` tokens, in `dtype`."""
        return key_value_bytes(self.num_groups, self.head_dim, dtype, num_tokens, self.window)

    @classmethod
    def of(cls, attention: nn.Module) -> Teacher:
        """Read off a supported base's attention layer."""
        config, head_dim = attention.config, attention.head_dim
        # Mistral alone keeps its window in the config of the whole model.
        window = attention.sliding_window if hasattr(attention, "sliding_window") else None
        return cls(
            layer=attention.layer_idx,
            hidden_size=attention.q_proj.in_features,
            num_heads=attention.q_proj.out_features // head_dim,
            num_groups=attention.k_proj.out_features // head_dim,
            head_dim=head_dim,
            scaling=attention.scaling,
            dropout=attention.attention_dropout,
            bias=attention.q_proj.bias is not None,
            window=config.sliding_window if config.model_type == "mistral" else window,
        )


class HeadBranch(nn.Module):
    """Projections to queries of `heads`, keys and values of `groups`, with copies of the teacher's QK-norms.

    A group may stand in `groups` more than once: then each place has keys and values of its own.
    """

    def __init__(self, attention: nn.Module, heads: Sequence[int], groups: Sequence[int]) -> None:
        super().__init__()
        self.teacher, self.heads, self.groups = Teacher.of(attention), tuple(heads), tuple(groups)
        self.q_proj = self._projection(attention, self.heads)
        self.k_proj = self._projection(attention, self.groups)
        self.v_proj = self._projection(attention, self.groups)
        self.q_norm = copy.deepcopy(getattr(attention, "q_norm", None))
        self.k_norm = copy.deepcopy(getattr(attention, "k_norm", None))

    def copy_projections(self, attention: nn.Module) -> None:
        """The teacher's rows of these heads, and of the key-value group in each place of `groups`."""
        pairs = (("q_proj", self.heads), ("k_proj", self.groups), ("v_proj", self.groups))
        for name, heads in pairs:
            own, theirs = getattr(self, name), getattr(attention, name)
            for own_tensor, their_tensor in zip(own.parameters(), theirs.parameters(), strict=True):
                own_tensor.copy_(rows_of(their_tensor, heads, self.teacher.head_dim))

    def _projection(self, attention: nn.Module, heads: Sequence[int]) -> nn.Linear:
        shape = (self.teacher.hidden_size, len(heads) * self.teacher.head_dim)
        return nn.Linear(*shape, bias=self.teacher.bias, **like(attention))


def output_gate(attention: nn.Module, num_heads: int) -> nn.Linear:
    """A projection to a gate for each channel of `num_heads` heads, through which everything passes at first."""
    gate = nn.Linear(attention.q_proj.in_features, num_heads * attention.head_dim, **like(attention))
    with torch.no_grad():
        gate.weight.zero_()
        gate.bias.fill_(GATE_BIAS)
    return gate


def like(attention: nn.Module) -> dict[str, Any]:
    """Where and of what type the parameters of an attention layer are."""
    return {"device": attention.q_proj.weight.device, "dtype": attention.q_proj.weight.dtype}
