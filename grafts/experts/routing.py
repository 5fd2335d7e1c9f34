"""Which expert a token goes to, and the losses that keep all of them in use, as pure functions.

Shapes: P tokens, N experts, K of them chosen for a token, C channels. Everything is float32, or float64 where the
model is.
"""

from __future__ import annotations

import math

from torch import Tensor
from torch.nn import functional

from grafts.arithmetic import wide_dtype, widened


def router_logits(x: Tensor, weight_NC: Tensor) -> Tensor:
    """Logits [..., N] of tokens `x` [..., C], computed in float32 whatever the types are (arXiv 2101.03961)."""
    return functional.linear(widened(x), weight_NC.to(wide_dtype(x.dtype)))


def top_gates(logits_PN: Tensor, top_k: int, *, renormalise: bool) -> tuple[Tensor, Tensor]:
    """Gates and experts [P, K] of each token, the best first.

    Gates are the softmax over all experts; with `renormalise` those of a token sum to 1.
    """
    gates_PK, experts_PK = logits_PN.softmax(-1).topk(top_k, dim=-1)
    return (gates_PK / gates_PK.sum(-1, keepdim=True) if renormalise else gates_PK), experts_PK


def within_capacity(experts_PK: Tensor, num_experts: int, capacity: float) -> Tensor:
    """Which assignments [P, K] their expert has room for: ceil(capacity · P · K / N) each, first come, first served.

    First choices come before second ones, and earlier tokens before later ones (arXiv 2101.03961).
    """
    room = math.ceil(capacity * experts_PK.numel() / num_experts)
    in_order = functional.one_hot(experts_PK.T.flatten(), num_experts)
    place = (in_order.cumsum(0) * in_order).sum(-1)
    return (place <= room).unflatten(0, (experts_PK.shape[1], -1)).T


def expert_load(logits_PN: Tensor, top_k: int) -> Tensor:
    """Share of the assignments that each expert gets [N]; they sum to 1."""
    chosen = logits_PN.detach().topk(top_k, dim=-1).indices.flatten()
    return chosen.bincount(minlength=logits_PN.shape[-1]).to(logits_PN.dtype) / chosen.numel()


def balance_loss(logits_PN: Tensor, top_k: int) -> Tensor:
    """N Σ fᵢ Pᵢ of the share fᵢ of assignments and the mean probability Pᵢ of each expert (arXiv 2101.03961).

    It is 1 when all are chosen alike. Its gradient goes through Pᵢ alone.
    """
    return logits_PN.shape[-1] * (expert_load(logits_PN, top_k) * logits_PN.softmax(-1).mean(0)).sum()


def z_loss(logits_PN: Tensor) -> Tensor:
    """Mean square of logsumexp of the logits, which keeps them small (arXiv 2202.08906)."""
    return logits_PN.logsumexp(-1).square().mean()


def router_entropy(logits_PN: Tensor) -> Tensor:
    """Mean entropy in nats of the distribution over experts: log N undecided, 0 certain."""
    log_PN = logits_PN.detach().log_softmax(-1)
    return -(log_PN.exp() * log_PN).sum(-1).mean()
