"""How far two next-token distributions lie apart, as pure functions of logits."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

VOCABULARY_BLOCK = 2**15
"""Tokens of the vocabulary whose float32 logits are held at once: 32 MB for 256 positions."""


@dataclass(frozen=True)
class TokenDistance:
    """Figures of each of P positions: kl [P], agree [P], parent_nll [P], child_nll [P], all float32."""

    kl: Tensor
    agree: Tensor
    parent_nll: Tensor
    child_nll: Tensor


def token_distance(parent_PV: Tensor, child_PV: Tensor, targets_P: Tensor) -> TokenDistance:
    """Compare two sets of next-token logits at P positions whose true next tokens are `targets_P`.

    The logits may be of any floating type; the arithmetic is float32, block by block of the vocabulary.
    KL(parent || child) is in nats; a token that the parent rules out (logit -inf) adds nothing to it.
    """
    parent_z_P, child_z_P = _log_normaliser(parent_PV), _log_normaliser(child_PV)
    kl_P = torch.zeros_like(parent_z_P)
    for parent_PW, child_PW in zip(_blocks(parent_PV), _blocks(child_PV), strict=True):
        parent_log_PW = parent_PW.float().sub(parent_z_P[:, None])
        gap_PW = child_PW.float().sub(child_z_P[:, None]).neg_().add_(parent_log_PW)
        share_PW = parent_log_PW.exp_()
        kl_P += gap_PW.mul_(share_PW).masked_fill_(share_PW == 0, 0.0).sum(-1)
    return TokenDistance(
        kl=kl_P,
        agree=(parent_PV.argmax(-1) == child_PV.argmax(-1)).float(),
        parent_nll=parent_z_P - parent_PV.gather(-1, targets_P[:, None]).squeeze(-1).float(),
        child_nll=child_z_P - child_PV.gather(-1, targets_P[:, None]).squeeze(-1).float(),
    )


def naive_token_distance(parent_PV: Tensor, child_PV: Tensor, targets_P: Tensor) -> TokenDistance:
    """Reference for `token_distance`: the whole distributions in float32 at once."""
    parent_log_PV = functional.log_softmax(parent_PV.float(), dim=-1)
    child_log_PV = functional.log_softmax(child_PV.float(), dim=-1)
    return TokenDistance(
        kl=(parent_log_PV.exp() * (parent_log_PV - child_log_PV)).sum(-1),
        agree=(parent_log_PV.argmax(-1) == child_log_PV.argmax(-1)).float(),
        parent_nll=functional.nll_loss(parent_log_PV, targets_P, reduction="none"),
        child_nll=functional.nll_loss(child_log_PV, targets_P, reduction="none"),
    )


def _blocks(logits_PV: Tensor) -> tuple[Tensor, ...]:
    return logits_PV.split(VOCABULARY_BLOCK, dim=-1)


def _log_normaliser(logits_PV: Tensor) -> Tensor:
    """Log-sum-exp over the vocabulary [P], float32."""
    blocks = [torch.logsumexp(block_PW.float(), dim=-1) for block_PW in _blocks(logits_PV)]
    return torch.logsumexp(torch.stack(blocks), dim=0)
