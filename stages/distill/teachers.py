"""What a teacher says at P positions: all its logits, or its likeliest tokens and the mass of the rest.

A cached teacher keeps k tokens a position. The others form one outcome, the tail: teacher and student are compared over
k + 1 outcomes, which is a lower bound of the divergence over all tokens and equal to it for k = V. Dropping the tail
instead would teach the student that the teacher's best tokens are surer than they are (arXiv 2503.16870).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from stages.distill.divergences import Measured, divergence
from stages.distill.settings import Divergence

NEVER = -1e4
"""Log-probability of what cannot happen: its exponential is 0 in float32, and 0 times it is 0."""


class Teacher(Protocol):
    """What the student is compared with."""

    def compare(self, part: slice, student_CV: Tensor, kind: Divergence, beta: float, temperature: float) -> Measured:
        """Divergence to the student's log-probabilities [C, V], softened already, at the positions `part`."""
        ...


@dataclass(frozen=True)
class WholeTeacher:
    """All its logits."""

    logits: Tensor
    """[P, V], of any floating type."""

    def compare(self, part: slice, student_CV: Tensor, kind: Divergence, beta: float, temperature: float) -> Measured:
        """As in `Teacher`."""
        teacher_CV = functional.log_softmax(self.logits[part].float() / temperature, dim=-1)
        return divergence(student_CV, teacher_CV, kind, beta)


@dataclass(frozen=True)
class TopTeacher:
    """The k likeliest tokens of P positions, softened when they were cached."""

    ids: Tensor
    """[P, k], int64."""
    log_probs: Tensor
    """[P, k], float32, natural."""
    tail: Tensor
    """[P], log of the mass of all other tokens."""

    @classmethod
    def of(cls, logits_PV: Tensor, k: int, temperature: float) -> TopTeacher:
        """Cut logits [P, V] down to their `k` likeliest tokens at `temperature`."""
        log_PV = functional.log_softmax(logits_PV.float() / temperature, dim=-1)
        top = log_PV.topk(k, dim=-1)
        return cls(top.indices, top.values, _log_tail(log_PV, top.indices))

    def compare(self, part: slice, student_CV: Tensor, kind: Divergence, beta: float, temperature: float) -> Measured:  # noqa: ARG002
        """As in `Teacher`; the softening is that of the cache."""
        ids_CK = self.ids[part]
        student_tail_C = _log_tail(student_CV, ids_CK)
        coarse = divergence(
            _outcomes(student_CV.gather(-1, ids_CK), student_tail_C),
            _outcomes(self.log_probs[part], self.tail[part]).log_softmax(-1),  # stored values are rounded
            kind,
            beta,
        )
        # The tail's gradient falls on its tokens by their share of it.
        share_CV = (student_CV - student_tail_C[:, None]).clamp_(max=0).exp_()
        grad_CV = share_CV.mul_(coarse.grad[:, -1:]).scatter_(-1, ids_CK, coarse.grad[:, :-1])
        return Measured(coarse.total, grad_CV)


def _log_tail(log_CV: Tensor, ids_CK: Tensor) -> Tensor:
    """Log of the mass outside the tokens `ids_CK`, [C]."""
    return log_CV.scatter(-1, ids_CK, -torch.inf).logsumexp(-1).clamp(min=NEVER)


def _outcomes(log_CK: Tensor, tail_C: Tensor) -> Tensor:
    return torch.cat([log_CK, tail_C[:, None]], dim=-1).clamp(min=NEVER)
