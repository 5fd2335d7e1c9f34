"""The parallel block, y = x + attention(norm(x)) + experts(norm(x)), on layers that were serial (arXiv 2408.08274).

Both parts keep the norms that they had. No serial model survives it without training: it is for mixtures that will be
trained, and for comparing with the paper, whose seed was parallel from the start.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from torch import Tensor, nn


class ParallelLayer(nn.Module):
    """Forward of a decoder layer whose parts read the same input; mixed into the class of the base's layers."""

    def forward(self, hidden_states: Tensor, **kwargs: Any) -> Tensor:
        """Hidden states [B, T, C] to hidden states [B, T, C]."""
        attended, _ = self.self_attn(hidden_states=self.input_layernorm(hidden_states), **kwargs)
        if hasattr(self, "pre_feedforward_layernorm"):  # Gemma has norms after both parts too
            attended = self.post_attention_layernorm(attended)
            fed = self.post_feedforward_layernorm(self.mlp(self.pre_feedforward_layernorm(hidden_states)))
        else:
            fed = self.mlp(self.post_attention_layernorm(hidden_states))
        return hidden_states + attended + fed


def make_parallel(layer: nn.Module) -> None:
    """Let the decoder layer `layer` compute its two parts side by side; its modules and weights stay."""
    layer.__class__ = parallel_class(type(layer))


@cache
def parallel_class(kind: type[nn.Module]) -> type[nn.Module]:
    """The class of parallel layers over the decoder layers `kind` of a base."""
    return type(f"Parallel{kind.__name__}", (ParallelLayer, kind), {"__module__": __name__, "__doc__": kind.__doc__})
