"""The policy loss: clipped surrogate (arXiv 1707.06347) and KL to a reference (GRPO, arXiv 2402.03300), and its guards.

Pure tensor functions over N rollouts of at most L tokens; `mask_NL` says which tokens the policy itself wrote. What a
tool said never counts.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from stages.agent.rl.rules import Aggregation, LossRule


@dataclass(frozen=True)
class TokenLoss:
    """Parts of the loss for each token, [N, L]: `loss` has a gradient; the others are for curves."""

    loss: Tensor
    kl: Tensor
    clipped: Tensor
    """1 where the clip holds the token back."""


def token_loss(
    logp_NL: Tensor, old_NL: Tensor, reference_NL: Tensor, advantage_NL: Tensor, rule: LossRule
) -> TokenLoss:
    """-min(ρ A, clip(ρ, 1 - low, 1 + high) A) + β KL for each token, with ρ = π / π_rollout.

    All are log-probabilities in nats, of the tokens that were sampled; only `logp_NL` may have a gradient.
    """
    ratio_NL = (logp_NL - old_NL).exp()
    bounded_NL = ratio_NL.clamp(1 - rule.clip_low, 1 + rule.clip_high)
    free_NL, held_NL = ratio_NL * advantage_NL, bounded_NL * advantage_NL
    kl_NL = kl_estimate(logp_NL, reference_NL)
    loss_NL = -torch.minimum(free_NL, held_NL) + rule.kl_weight * kl_NL
    return TokenLoss(loss_NL, kl_NL.detach(), (held_NL < free_NL).to(loss_NL.dtype))


def kl_estimate(logp: Tensor, reference: Tensor) -> Tensor:
    """An estimate of KL(π || reference) from one token each, never negative: r - log r - 1 with r = reference / π."""
    difference = reference - logp
    return difference.exp() - difference - 1


def token_weights(mask_NL: Tensor, aggregation: Aggregation) -> Tensor:
    """Weights [N, L], float32, whose sum is N: a weighted sum of token losses is N times the loss of the batch.

    A rollout without tokens weighs 0. Then, as in GRPO, the mean of `sequence` still divides by all N rollouts.
    """
    mask_NL = mask_NL.float()
    if aggregation == "sequence":
        return mask_NL / mask_NL.sum(1, keepdim=True).clamp(min=1)
    return mask_NL * (mask_NL.shape[0] / mask_NL.sum().clamp(min=1))


def token_advantages(advantage_NT: Tensor, turn_NL: Tensor) -> Tensor:
    """The advantage of each token [N, L]: that of its turn, 0 where `turn_NL` is -1 (not the policy's)."""
    spread_NL = advantage_NT.gather(1, turn_NL.clamp(min=0))
    return spread_NL.masked_fill(turn_NL < 0, 0.0)


def stale(logp_NL: Tensor, old_NL: Tensor, mask_NL: Tensor, limit: float) -> Tensor:
    """Which rollouts [N] the policy has left behind: their mean |log π - log π_rollout| over tokens exceeds `limit`."""
    apart_NL = (logp_NL.detach() - old_NL).abs() * mask_NL
    return apart_NL.sum(1) / mask_NL.sum(1).clamp(min=1) > limit
