"""The divergences beside those of TRL's GKD (test extra): value and gradient on the same logits."""

import pytest
import torch

from stages.distill.losses import Mix, distill_loss

gkd = pytest.importorskip("trl.experimental.gkd", reason="trl is not installed")


@pytest.mark.parametrize(
    ("divergence", "beta", "theirs"),
    [("forward_kl", 0.5, 0), ("reverse_kl", 0.5, 1), ("jsd", 0.5, 0.5), ("jsd", 0.1, 0.1), ("jsd", 0.9, 0.9)],
)
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_the_loss_and_its_gradient_are_trl_s(divergence: str, beta: float, theirs: float, temperature: float):
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(2, 300, 97, generator=generator) * 3 for _ in range(2))
    ours, other = student.clone().requires_grad_(), student.clone().requires_grad_()
    labels = torch.randint(97, (2, 300), generator=generator)
    mix = Mix(1.0, 0.0, temperature, divergence, beta)
    found = distill_loss(ours.flatten(0, 1), teacher.flatten(0, 1), labels.flatten(), mix).kl
    told = gkd.GKDTrainer.generalized_jsd_loss(other, teacher, labels, theirs, temperature, reduction="sum")
    torch.testing.assert_close(found.float(), told, rtol=1e-6, atol=0)
    distill_loss(ours.flatten(0, 1), teacher.flatten(0, 1), labels.flatten(), mix).total.backward()
    (told * temperature**2).backward()
    torch.testing.assert_close(ours.grad, other.grad, rtol=1e-5, atol=1e-6)
