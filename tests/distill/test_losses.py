from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from stages import chunks
from stages.distill.losses import DistillLoss, Mix, distill_loss, naive

MIXES = [Mix(1, 0, 1), Mix(0, 1, 1), Mix(0.7, 0.3, 2.0), Mix(1, 1, 0.5)]


def tensors(num_positions: int, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(num_positions)
    student, teacher = (3 * torch.randn(num_positions, 50, generator=generator) for _ in range(2))
    targets = torch.randint(50, (num_positions,), generator=generator)
    return student.to(dtype).requires_grad_(), teacher.to(dtype), targets


def gradient(loss: DistillLoss, student: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
    return torch.autograd.grad(loss.total * scale, student)[0]


@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("num_positions", [1, 7, 8, 29])
def test_chunked_equals_naive_in_value_and_gradient(mix: Mix, num_positions: int, monkeypatch):
    monkeypatch.setattr(chunks, "CPU_LOGITS", 8 * 50)
    student, teacher, targets = tensors(num_positions)
    fast, slow = distill_loss(student, teacher, targets, mix), naive(student, teacher, targets, mix)
    for name in ("total", "kl", "ce"):
        torch.testing.assert_close(getattr(fast, name).float(), getattr(slow, name), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradient(fast, student, 0.37), gradient(slow, student, 0.37), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("mix", MIXES)
def test_bf16_logits_lose_only_the_gradients_last_rounding(mix: Mix):
    student, teacher, targets = tensors(20, torch.bfloat16)
    wide = student.detach().float().requires_grad_()
    found, reference = gradient(distill_loss(student, teacher, targets, mix), student), None
    reference = gradient(naive(wide, teacher.float(), targets, mix), wide)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), reference, rtol=2**-7, atol=1e-5)


def test_without_kl_it_is_torchs_cross_entropy():
    student, teacher, targets = tensors(20)
    expected = functional.cross_entropy(student, targets, reduction="sum")
    torch.testing.assert_close(distill_loss(student, teacher, targets, Mix(0, 1, 4.0)).total, expected)


def test_without_cross_entropy_it_is_torchs_kl():
    student, teacher, targets = tensors(20)
    logs = [functional.log_softmax(x / 2, -1) for x in (student, teacher)]
    expected = 4 * functional.kl_div(*logs, log_target=True, reduction="sum")
    torch.testing.assert_close(distill_loss(student, teacher, targets, Mix(1, 0, 2.0)).total, expected)


def test_equal_logits_have_no_kl_and_no_gradient():
    student, _, targets = tensors(20)
    loss = distill_loss(student, student.detach().clone(), targets, Mix(1, 0, 1))
    assert loss.total.item() == 0
    assert gradient(loss, student).abs().max().item() == 0


def test_at_high_temperature_kl_matches_centred_logits():
    """Hinton's limit: T^2 KL tends to |z - v|^2 / 2V of logits with zero mean (arXiv 1503.02531, section 2.1)."""
    student, teacher, targets = (x.detach().double() if x.is_floating_point() else x for x in tensors(20))
    student, teacher = (x - x.mean(-1, keepdim=True) for x in (student, teacher))
    expected = (student - teacher).square().sum() / (2 * student.shape[1])
    found = naive(student.double(), teacher.double(), targets, Mix(1, 0, 300.0)).total
    torch.testing.assert_close(found.double(), expected, rtol=2e-2, atol=0)


def test_nothing_is_differentiated_without_need():
    student, teacher, targets = tensors(5)
    assert not distill_loss(student.detach(), teacher, targets, MIXES[2]).total.requires_grad
