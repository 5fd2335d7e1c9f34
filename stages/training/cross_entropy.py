"""Next-token cross-entropy without a float32 matrix of all positions by the whole vocabulary, and its reference."""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor
from torch.nn import functional

from stages.chunks import chunks, scale

IGNORED: Final = -100
"""Label of a position that is no target."""


def cross_entropy(logits_PV: Tensor, labels_P: Tensor) -> Tensor:
    """Cross-entropy in nats, summed over the positions whose label is not `IGNORED`.

    Logits [P, V] of any floating type; the arithmetic is float32 and the gradient has the logits' type.
    Differentiable once.
    """
    return _ChunkedCrossEntropy.apply(logits_PV, labels_P)


def naive(logits_PV: Tensor, labels_P: Tensor) -> Tensor:
    """The reference for `cross_entropy`."""
    return functional.cross_entropy(logits_PV.float(), labels_P, ignore_index=IGNORED, reduction="sum")


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits_PV: Tensor, labels_P: Tensor) -> Tensor:
        grad_PV = torch.empty_like(logits_PV) if logits_PV.requires_grad else None
        total = torch.zeros((), dtype=torch.float64, device=logits_PV.device)
        for part in chunks(logits_PV):
            log_CV, labels_C = functional.log_softmax(logits_PV[part].float(), dim=-1), labels_P[part]
            total += functional.nll_loss(log_CV, labels_C, ignore_index=IGNORED, reduction="sum").double()
            if grad_PV is not None:
                grad_PV[part] = _gradient(log_CV, labels_C)
        ctx.save_for_backward(grad_PV)
        return total.float()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad_PV,) = ctx.saved_tensors
        scale(grad_PV, grads[0])
        return grad_PV, None


def _gradient(log_CV: Tensor, labels_C: Tensor) -> Tensor:
    """The gradient by the logits: softmax - onehot, zero where there is no target."""
    grad_CV, targets_C = log_CV.exp(), labels_C.clamp(min=0)
    grad_CV[torch.arange(len(labels_C), device=labels_C.device), targets_C] -= 1
    return grad_CV.mul_((labels_C != IGNORED).unsqueeze(1))
