"""Texts that a student writes itself, for distillation on policy (arXiv 2306.13649)."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from stages.evaluate.distance import evaluating

GOLDEN = 0.6180339887498949


def is_sampled(index: int, fraction: float) -> bool:
    """Whether window `index` is one of the share `fraction` that the student continues: evenly spread, always alike."""
    return (index * GOLDEN) % 1 < fraction


@torch.no_grad()
def continue_windows(model: nn.Module, ids_BT: Tensor, num_kept: int, indices: Iterable[int]) -> Tensor:
    """Windows [B, T] whose first `num_kept` tokens stay and whose others `model` draws, one after the other.

    The end-of-text token is a token like any other, as it is in packed data. The random numbers of a window are a
    function of its index, so that micro-batches and workers do not matter.
    """
    num_drawn = ids_BT.shape[1] - num_kept
    uniform_BN = torch.stack([_uniform(index, num_drawn) for index in indices]).to(ids_BT.device)
    written_BT, cache = ids_BT[:, :num_kept], None
    with evaluating(model):
        for drawn in range(num_drawn):
            step_BT = written_BT if cache is None else written_BT[:, -1:]
            output = model(input_ids=step_BT, past_key_values=cache, use_cache=True)
            cache = output.past_key_values
            next_B1 = _draw(output.logits[:, -1], uniform_BN[:, drawn : drawn + 1])
            written_BT = torch.cat([written_BT, next_B1], dim=1)
    return written_BT


def _uniform(index: int, num: int) -> Tensor:
    return torch.rand(num, generator=torch.Generator().manual_seed(index))


def _draw(logits_BV: Tensor, uniform_B1: Tensor) -> Tensor:
    """The token [B, 1] at which the distribution function passes `uniform_B1`."""
    reached_BV = logits_BV.float().softmax(-1).cumsum(-1)
    return torch.searchsorted(reached_BV, uniform_B1.contiguous()).clamp(max=logits_BV.shape[-1] - 1)
