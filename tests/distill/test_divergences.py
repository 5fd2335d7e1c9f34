"""Divergences against their definitions, their limits, TRL's, and a cached teacher against a whole one."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch.nn import functional

from stages import chunks
from stages.distill import divergences
from stages.distill.divergences import divergence
from stages.distill.losses import Mix, distill_loss, naive
from stages.distill.teachers import TopTeacher, WholeTeacher
from tests.distill.test_losses import gradient, tensors

KINDS = [("forward_kl", 0.5), ("reverse_kl", 0.5), ("jsd", 0.5), ("jsd", 0.1), ("jsd", 0.9)]


def rows(seed: int = 0, width: int = 12) -> torch.Tensor:
    return 2 * torch.randn(9, width, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("kind", "beta"), KINDS)
def test_closed_forms_equal_autograd(kind, beta):
    logits, teacher = rows(0).double().requires_grad_(), rows(1).double().log_softmax(-1)
    expected = divergences.naive(logits.log_softmax(-1), teacher, kind, beta)
    found = divergence(logits.detach().log_softmax(-1), teacher, kind, beta)
    torch.testing.assert_close(found.total, expected.detach())
    torch.testing.assert_close(found.grad, torch.autograd.grad(expected, logits)[0])


@pytest.mark.parametrize(("kind", "beta"), KINDS)
def test_student_equal_to_teacher_has_no_divergence_and_no_gradient(kind, beta):
    same = rows().log_softmax(-1)
    found = divergence(same, same.clone(), kind, beta)
    assert found.total.abs().item() < 1e-5
    assert found.grad.abs().max().item() < 1e-6


def test_jensen_shannon_tends_to_either_kl():
    student, teacher = rows(0).double().log_softmax(-1), rows(1).double().log_softmax(-1)
    for beta, scale, limit in ((1e-8, 1e-8, "forward_kl"), (1 - 1e-8, 1e-8, "reverse_kl")):
        found = divergence(student, teacher, "jsd", beta)
        expected = divergence(student, teacher, limit, beta)
        torch.testing.assert_close(found.total / scale, expected.total, rtol=1e-3, atol=0)
        torch.testing.assert_close(found.grad / scale, expected.grad, rtol=1e-3, atol=1e-5)


def test_jensen_shannon_is_symmetric_and_bounded_where_kl_is_not():
    near, far = ((40.0 * functional.one_hot(torch.tensor([column]), 12)).double().log_softmax(-1) for column in (0, 1))
    there, back = divergence(near, far, "jsd", 0.5).total, divergence(far, near, "jsd", 0.5).total
    torch.testing.assert_close(there, back)
    assert there.item() == pytest.approx(torch.tensor(2.0).log().item(), rel=1e-6)
    assert divergence(near, far, "forward_kl", 0.5).total > 30


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize(("kind", "beta"), KINDS)
def test_chunks_equal_naive_for_every_divergence(kind, beta, temperature, monkeypatch):
    monkeypatch.setattr(chunks, "CPU_LOGITS", 8 * 50)
    mix = Mix(0.7, 0.3, temperature, kind, beta)
    student, teacher, targets = tensors(29)
    fast, slow = distill_loss(student, teacher, targets, mix), naive(student, teacher, targets, mix)
    torch.testing.assert_close(fast.total, slow.total, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradient(fast, student), gradient(slow, student), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("kind", "beta"), KINDS)
def test_a_cache_of_the_whole_vocabulary_equals_the_teacher(kind, beta):
    mix = Mix(1, 0.5, 2.0, kind, beta)
    student, teacher, targets = tensors(20)
    whole = distill_loss(student, teacher, targets, mix)
    cached = distill_loss(student, TopTeacher.of(teacher, 50, 2.0), targets, mix)
    torch.testing.assert_close(cached.total, whole.total, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradient(cached, student), gradient(whole, student), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("kind", "beta"), KINDS)
@pytest.mark.parametrize("k", [1, 7])
def test_the_tail_is_one_outcome(kind, beta, k):
    """Against autograd on the coarse distributions, built naively token by token."""
    student, teacher, targets = tensors(9)
    top = TopTeacher.of(teacher, k, 1.0)
    inside = torch.zeros_like(teacher, dtype=torch.bool).scatter(-1, top.ids, True)
    torch.testing.assert_close(top.tail.exp(), teacher.softmax(-1).masked_fill(inside, 0).sum(-1))

    def coarse(logits: torch.Tensor) -> torch.Tensor:
        share = logits.softmax(-1)
        return torch.cat([share.gather(-1, top.ids), share.masked_fill(inside, 0).sum(-1, keepdim=True)], -1).log()

    expected = divergences.naive(coarse(student), coarse(teacher), kind, beta)
    found = distill_loss(student, top, targets, Mix(1, 0, 1, kind, beta))
    torch.testing.assert_close(found.total, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        gradient(found, student), torch.autograd.grad(expected, student)[0], rtol=1e-4, atol=1e-6
    )


def test_more_tokens_in_the_cache_come_nearer_from_below():
    student, teacher, targets = tensors(20)
    mix, found = Mix(1, 0, 1), []
    for k in (1, 3, 10, 30, 50):
        found.append(distill_loss(student, TopTeacher.of(teacher, k, 1.0), targets, mix).total.item())
    assert found == sorted(found)
    assert found[0] < 0.9 * found[-1]


def test_a_teacher_that_rules_tokens_out_is_finite():
    student, teacher, targets = tensors(6)
    teacher[:, 3:] = -torch.inf
    loss = distill_loss(student, TopTeacher.of(teacher, 5, 1.0), targets, Mix(1, 0, 1))
    assert loss.total.isfinite()
    assert gradient(loss, student).isfinite().all()


@pytest.mark.parametrize("teacher_of", [WholeTeacher, lambda logits: TopTeacher.of(logits, 50, 1.0)])
@pytest.mark.parametrize("beta", [0.0, 0.3, 0.5, 1.0])
def test_the_generalised_divergence_is_that_of_trl(teacher_of: Callable, beta: float):
    trl = pytest.importorskip("trl.experimental.gkd", reason="TRL is the oracle")
    student, teacher, targets = tensors(20)
    expected = trl.GKDTrainer.generalized_jsd_loss(student[None], teacher[None], beta=beta, reduction="sum")
    kind = {0.0: "forward_kl", 1.0: "reverse_kl"}.get(beta, "jsd")
    found = distill_loss(student, teacher_of(teacher), targets, Mix(1, 0, 1, kind, beta)).total
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-5)
