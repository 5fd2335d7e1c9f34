"""Log-probabilities of chosen tokens without a float32 matrix of all positions by the whole vocabulary."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from stages.chunks import chunks


def log_probs(logits_PV: Tensor, targets_P: Tensor, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """Log-probability of each target and the entropy of its distribution, both [P], float32, in nats.

    Logits [P, V] of any floating type are divided by `temperature`. The first result is differentiable once, the
    entropy is for curves only.
    """
    return _ChosenLogProbs.apply(logits_PV, targets_P, temperature)


def naive(logits_PV: Tensor, targets_P: Tensor, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """The reference for `log_probs`."""
    log_PV = (logits_PV.float() / temperature).log_softmax(-1)
    return log_PV.gather(1, targets_P.unsqueeze(1)).squeeze(1), -(log_PV.exp() * log_PV).sum(-1).detach()


def policy_log_probs(
    model: nn.Module,
    ids_NL: Tensor,
    mask_NL: Tensor,
    temperature: float = 1.0,
    positions_NL: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Log-probabilities and entropies [N, L] of the tokens at `mask_NL` under `model`, 0 elsewhere.

    Ids [N, L] are padded on the right, where nothing the mask chooses can see it. The first column is never chosen.
    Rows of several conversations need `positions_NL`, which start again with each: every conversation is then read by
    itself, so that none sees another whatever the model's layers. With gradients on, each is read again when its turn
    comes in the backward pass: memory grows with the longest conversation, not with their number.
    """
    whole = [(slice(None), slice(None))]
    parts = whole if positions_NL is None else _conversations(mask_NL, positions_NL) or whole
    read = [_read_again(model, ids_NL[part], mask_NL[part], temperature, again=len(parts) > 1) for part in parts]
    logp_P, entropy_P = (torch.cat(found) for found in zip(*read, strict=True))
    return _spread(logp_P, mask_NL), _spread(entropy_P, mask_NL)


def _read_again(
    model: nn.Module, ids_NL: Tensor, mask_NL: Tensor, temperature: float, *, again: bool
) -> tuple[Tensor, Tensor]:
    """`_read`; where a backward pass follows and `again` is set, it keeps nothing but its inputs and reads again."""
    if again and torch.is_grad_enabled():
        return checkpoint(_read, model, ids_NL, mask_NL, temperature, use_reentrant=False)
    return _read(model, ids_NL, mask_NL, temperature)


def _read(model: nn.Module, ids_NL: Tensor, mask_NL: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Log-probabilities and entropies [P] of the chosen tokens of one pass, in reading order."""
    before_L = (mask_NL[:, 1:].any(0)).nonzero().squeeze(1)
    logits_NKV = model(input_ids=ids_NL[:, :-1], use_cache=False, logits_to_keep=before_L).logits
    chosen_NK, targets_NK = mask_NL[:, before_L + 1], ids_NL[:, before_L + 1]
    return log_probs(logits_NKV[chosen_NK], targets_NK[chosen_NK], temperature)


def _conversations(mask_NL: Tensor, positions_NL: Tensor) -> list[tuple[slice, slice]]:
    """Row and columns of each conversation in which a token is chosen, in reading order."""
    found = []
    for row, (mask_L, positions_L) in enumerate(zip(mask_NL, positions_NL, strict=True)):
        begins = [*(positions_L == 0).nonzero().squeeze(1).tolist(), len(positions_L)]
        spans = (slice(begin, end) for begin, end in pairwise(begins))
        found += [(slice(row, row + 1), span) for span in spans if mask_L[span].any()]
    return found


def _spread(values_P: Tensor, mask_NL: Tensor) -> Tensor:
    """Values [P] at the places of the mask, in reading order."""
    return torch.zeros(mask_NL.shape, device=values_P.device).masked_scatter(mask_NL, values_P)


class _ChosenLogProbs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits_PV: Tensor, targets_P: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        parts = [naive(logits_PV[part], targets_P[part], temperature) for part in chunks(logits_PV)]
        logp_P, entropy_P = (torch.cat(part) for part in zip(*parts, strict=True))
        ctx.save_for_backward(logits_PV, targets_P)
        ctx.temperature = temperature
        ctx.mark_non_differentiable(entropy_P)
        return logp_P, entropy_P

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        logits_PV, targets_P = ctx.saved_tensors
        grad_PV = torch.empty_like(logits_PV)
        for part in chunks(logits_PV):
            grad_PV[part] = _gradient(logits_PV[part], targets_P[part], grads[0][part], ctx.temperature)
        return grad_PV, None, None


def _gradient(logits_CV: Tensor, targets_C: Tensor, grad_C: Tensor, temperature: float) -> Tensor:
    """(onehot - softmax) / temperature, times what comes from above; float32."""
    grad_CV = (logits_CV.float() / temperature).softmax(-1).neg_()
    grad_CV[torch.arange(len(targets_C), device=targets_C.device), targets_C] += 1
    return grad_CV.mul_(grad_C.unsqueeze(1) / temperature)
