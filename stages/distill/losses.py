"""Losses of distillation, as pure functions of logits.

The fast path computes the loss and its gradient together, a few hundred positions at a time, so that no float32 matrix
of all positions by the whole vocabulary ever exists; `naive` is the same in a few lines of autograd, for tests.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from stages.chunks import chunks, scale
from stages.distill import divergences
from stages.distill.settings import Divergence
from stages.distill.teachers import Teacher, WholeTeacher


@dataclass(frozen=True)
class Mix:
    """Weights of the two losses, the temperature of the first, and which divergence it is.

    L = kl_weight T^2 D(teacher^(1/T), student^(1/T)) + ce_weight CE(student, targets), as arXiv 1503.02531 has it for
    the forward KL: the T^2 keeps the size of the gradient when T changes.
    """

    kl_weight: float
    ce_weight: float
    temperature: float
    divergence: Divergence = "forward_kl"
    beta: float = 0.5


@dataclass(frozen=True)
class DistillLoss:
    """Sums over positions: `total` (differentiable), and its unweighted parts `kl` (at the temperature) and `ce`.

    `kl` is whatever divergence the mix asks for.
    """

    total: Tensor
    kl: Tensor
    ce: Tensor


def distill_loss(student_PV: Tensor, teacher: Tensor | Teacher, targets_P: Tensor, mix: Mix) -> DistillLoss:
    """Divergence to the teacher mixed with cross-entropy, summed over P positions, in nats.

    `teacher` is its logits [P, V] or a `Teacher`. Logits of any floating type; the arithmetic is float32 and the
    gradient has the student's dtype. Differentiable in the student's logits only, once.
    """
    given = WholeTeacher(teacher) if isinstance(teacher, Tensor) else teacher
    total, kl, ce = _ChunkedLoss.apply(student_PV, given, targets_P, mix)
    return DistillLoss(total, kl, ce)


def naive(student_PV: Tensor, teacher_PV: Tensor, targets_P: Tensor, mix: Mix) -> DistillLoss:
    """The reference for `distill_loss`: plain autograd on whole float32 matrices."""
    student_log_PV = functional.log_softmax(student_PV.float() / mix.temperature, dim=-1)
    teacher_log_PV = functional.log_softmax(teacher_PV.float() / mix.temperature, dim=-1)
    kl = divergences.naive(student_log_PV, teacher_log_PV, mix.divergence, mix.beta)
    ce = functional.cross_entropy(student_PV.float(), targets_P, reduction="sum")
    return DistillLoss(mix.kl_weight * mix.temperature**2 * kl + mix.ce_weight * ce, kl, ce)


class _ChunkedLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, student_PV: Tensor, teacher: Teacher, targets_P: Tensor, mix: Mix) -> tuple[Tensor, ...]:
        grad_PV = torch.empty_like(student_PV) if student_PV.requires_grad else None
        kl, ce = torch.zeros((2,), dtype=torch.float64, device=student_PV.device)
        for part in chunks(student_PV):
            chunk = _chunk(student_PV[part], teacher, part, targets_P[part], mix, grad_PV is not None)
            kl, ce = kl + chunk.kl, ce + chunk.ce
            if grad_PV is not None:
                grad_PV[part] = chunk.grad
        ctx.save_for_backward(grad_PV)
        total = mix.kl_weight * mix.temperature**2 * kl + mix.ce_weight * ce
        ctx.mark_non_differentiable(kl, ce)
        return total.float(), kl, ce

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad_PV,) = ctx.saved_tensors
        scale(grad_PV, grads[0])
        return grad_PV, None, None, None


@dataclass(frozen=True)
class _Chunk:
    kl: Tensor
    ce: Tensor
    grad: Tensor | None


def _chunk(student_CV: Tensor, teacher: Teacher, part: slice, targets_C: Tensor, mix: Mix, with_grad: bool) -> _Chunk:
    """Sums over a chunk of C positions and the gradient of the mixed loss by its student logits [C, V], float32."""
    student_log_CV = functional.log_softmax(student_CV.float() / mix.temperature, dim=-1)
    found = teacher.compare(part, student_log_CV, mix.divergence, mix.beta, mix.temperature)
    log_CV = student_log_CV if mix.temperature == 1 else functional.log_softmax(student_CV.float(), dim=-1)
    ce = functional.nll_loss(log_CV, targets_C, reduction="sum").double()
    if not with_grad:
        return _Chunk(found.total, ce, None)
    # D is of z / T: d(T^2 D)/dz = T dD/d(z/T). And d(CE)/dz = softmax(z) - onehot.
    grad_CV = found.grad.mul_(mix.kl_weight * mix.temperature)
    if mix.ce_weight:
        grad_CV.add_(log_CV.exp(), alpha=mix.ce_weight)
        grad_CV[torch.arange(len(targets_C), device=targets_C.device), targets_C] -= mix.ce_weight
    return _Chunk(found.total, ce, grad_CV)
