"""Divergences between a teacher's and a student's distributions, with their gradients in closed form.

A row is one position, a column one outcome: a token, or the whole tail of a cached teacher. Everything works on rows of
log-probabilities in float32, so the caller decides how many rows exist at a time; `naive` is autograd on the same.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from stages.distill.settings import Divergence


@dataclass(frozen=True)
class Measured:
    """`total`, in nats and float64, summed over rows; `grad` [C, W], its gradient by the student's logits."""

    total: Tensor
    grad: Tensor


def divergence(student_CW: Tensor, teacher_CW: Tensor, kind: Divergence, beta: float) -> Measured:
    """Divergence of rows of log-probabilities [C, W], finite and float32. `beta` in (0, 1) counts for `jsd` only.

    JSD_b(p, q) = b KL(p || m) + (1 - b) KL(q || m) with m = b p + (1 - b) q, p the teacher: JSD_b / b tends to the
    forward KL as b falls to 0, JSD_b / (1 - b) to the reverse KL as b rises to 1.
    """
    if kind == "forward_kl":
        return _forward(student_CW, teacher_CW)
    if kind == "reverse_kl":
        return _through_softmax(student_CW, student_CW - teacher_CW)
    return _jensen_shannon(student_CW, teacher_CW, beta)


def naive(student_CW: Tensor, teacher_CW: Tensor, kind: Divergence, beta: float) -> Tensor:
    """The reference for `divergence`: its total by the definitions, differentiable by autograd."""
    if kind == "forward_kl":
        return _kl(teacher_CW, student_CW)
    if kind == "reverse_kl":
        return _kl(student_CW, teacher_CW)
    mixture_CW = (beta * teacher_CW.exp() + (1 - beta) * student_CW.exp()).log()
    return beta * _kl(teacher_CW, mixture_CW) + (1 - beta) * _kl(student_CW, mixture_CW)


def _kl(left_CW: Tensor, right_CW: Tensor) -> Tensor:
    return (left_CW.exp() * (left_CW - right_CW)).sum()


def _forward(student_CW: Tensor, teacher_CW: Tensor) -> Measured:
    share_CW = teacher_CW.exp()
    return Measured(_total(share_CW * (teacher_CW - student_CW)), student_CW.exp() - share_CW)


def _jensen_shannon(student_CW: Tensor, teacher_CW: Tensor, beta: float) -> Measured:
    mixture_CW = torch.logaddexp(student_CW + math.log1p(-beta), teacher_CW + math.log(beta))
    of_teacher = _total(teacher_CW.exp() * (teacher_CW - mixture_CW))
    of_student = _through_softmax(student_CW, student_CW - mixture_CW)
    return Measured(beta * of_teacher + (1 - beta) * of_student.total, (1 - beta) * of_student.grad)


def _total(values_CW: Tensor) -> Tensor:
    """The sum in float64 of sums over rows; a CPU takes ten times as long to add up everything in float64."""
    return values_CW.sum(-1).sum(dtype=torch.float64)


def _through_softmax(student_CW: Tensor, gap_CW: Tensor) -> Measured:
    """Sum q gap, and q (gap - sum q gap): the gradient where the derivative by q is `gap` up to a constant.

    That is so for both divergences that call it: what the mixture itself contributes cancels.
    """
    share_CW = student_CW.exp()
    mean_C1 = (share_CW * gap_CW).sum(-1, keepdim=True)
    return Measured(mean_C1.sum(dtype=torch.float64), (gap_CW - mean_C1) * share_CW)
