"""The chunked cross-entropy against its reference."""

import pytest
import torch

from stages import chunks
from stages.training.cross_entropy import IGNORED, cross_entropy, naive


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("num_positions", [1, 7, 8, 21])
def test_loss_and_gradient_are_the_reference_s(num_positions, dtype, monkeypatch):
    monkeypatch.setattr(chunks, "CPU_LOGITS", 8 * 11)
    generator = torch.Generator().manual_seed(num_positions)
    logits = torch.randn(num_positions, 11, generator=generator).mul(3).to(dtype)
    labels = torch.randint(11, (num_positions,), generator=generator)
    labels[::3] = IGNORED
    found, wanted = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    (cross_entropy(found, labels) * 0.37).backward()
    (naive(wanted, labels) * 0.37).backward()
    assert cross_entropy(logits, labels).item() == pytest.approx(naive(logits, labels).item(), rel=1e-6, abs=1e-6)
    torch.testing.assert_close(found.grad, wanted.grad)


def test_no_target_no_loss_and_no_gradient():
    logits = torch.randn(5, 11, requires_grad=True)
    loss = cross_entropy(logits, torch.full((5,), IGNORED))
    loss.backward()
    assert loss.item() == 0
    assert not logits.grad.any()
