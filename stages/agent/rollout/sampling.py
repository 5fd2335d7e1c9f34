"""Drawing tokens, each from a random number of its own row."""

from __future__ import annotations

import torch
from torch import Tensor

from stages.agent.rollout.engine import Sampling


def uniforms(seed: int, num: int) -> Tensor:
    """`num` random numbers in [0, 1), float64: a function of the seed alone, the first ones equal for any `num`."""
    generator = torch.Generator().manual_seed(seed)
    return torch.cat([torch.rand(1, generator=generator, dtype=torch.float64) for _ in range(num)])


def draw(logits_BV: Tensor, uniform_B: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """Tokens [B] and their log-probabilities [B], float32: the tokens at which the distribution passes `uniform_B`."""
    log_BV = (logits_BV.float() / (sampling.temperature or 1.0)).log_softmax(-1)
    if sampling.temperature == 0:
        token_B = log_BV.argmax(-1)
    else:
        token_B = _pass(_cut(log_BV.double().exp(), sampling.top_p), uniform_B.to(log_BV.device))
    return token_B, log_BV.gather(1, token_B.unsqueeze(1)).squeeze(1)


def _pass(weights_BV: Tensor, uniform_B: Tensor) -> Tensor:
    """The first token whose cumulated weight exceeds the share `uniform_B` of the whole: one that has weight."""
    reached_BV = weights_BV.cumsum(-1)
    wanted_B1 = uniform_B.unsqueeze(1) * reached_BV[:, -1:]
    return torch.searchsorted(reached_BV, wanted_B1, right=True).squeeze(1).clamp(max=weights_BV.shape[1] - 1)


def _cut(weights_BV: Tensor, top_p: float) -> Tensor:
    """Zero for all but the likeliest tokens that reach `top_p` together."""
    if top_p >= 1:
        return weights_BV
    sorted_BV, order_BV = weights_BV.sort(-1, descending=True)
    before_BV = sorted_BV.cumsum(-1) - sorted_BV
    return weights_BV.scatter(1, order_BV, sorted_BV.where(before_BV < top_p, 0.0))
