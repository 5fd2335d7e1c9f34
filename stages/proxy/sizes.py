"""What counts as the size of a model: its parameters outside the embeddings. Imported to plan: no torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

EMBEDDINGS: Final = (
    *("embed_tokens.weight", "lm_head.weight"),
    *("wte.weight", "wpe.weight"),
    *("embed_in.weight", "embed_out.weight"),
)
"""Ends of the names of embeddings: those of Llama and most others, of GPT-2, of GPT-NeoX."""


def is_counted(name: str, shape: Sequence[int]) -> bool:
    """Whether a tensor of a checkpoint is a parameter outside the embeddings: causal masks and the like are none."""
    return not name.endswith(EMBEDDINGS) and not _is_buffer(name, tuple(shape))


def _is_buffer(name: str, shape: tuple[int, ...]) -> bool:
    """Whether it is one that GPT-2 or GPT-NeoX kept in checkpoints; their biases have one dimension."""
    if name.endswith((".attn.bias", ".attention.bias")):
        return len(shape) == 4 and shape[:2] == (1, 1) and shape[2] == shape[3]
    return name.endswith((".masked_bias", ".rotary_emb.inv_freq"))
