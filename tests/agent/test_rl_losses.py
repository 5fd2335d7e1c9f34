"""Identities of the policy loss, and log-probabilities against their reference."""

from __future__ import annotations

import weakref

import pytest
import torch
from torch import Tensor

from stages.agent.rl.log_probs import log_probs, naive, policy_log_probs
from stages.agent.rl.losses import kl_estimate, stale, token_advantages, token_loss, token_weights
from stages.agent.rl.rules import LossRule
from tests.agent.schooled import newborn

RULE = LossRule(clip_low=0.2, clip_high=0.3, kl_weight=0.0)


def one(logp: float, old: float, advantage: float, rule: LossRule = RULE) -> tuple[float, float, float]:
    """Loss, its gradient by the log-probability, and whether the clip held it, of a single token."""
    x = torch.tensor([[logp]], requires_grad=True)
    found = token_loss(x, torch.tensor([[old]]), torch.tensor([[old]]), torch.tensor([[advantage]]), rule)
    found.loss.sum().backward()
    assert x.grad is not None
    return found.loss.item(), x.grad.item(), found.clipped.item()


def test_on_policy_it_is_the_policy_gradient() -> None:
    assert one(-1.0, -1.0, 2.5) == (-2.5, -2.5, 0)


@pytest.mark.parametrize(("ratio", "advantage", "held"), [(1.5, 1, 1), (1.5, -1, 0), (0.5, 1, 0), (0.5, -1, 1)])
def test_the_clip_holds_back_only_what_goes_too_far(ratio: float, advantage: float, held: float) -> None:
    logp = torch.tensor(ratio).log().item()
    loss, gradient, clipped = one(logp, 0.0, advantage)
    assert clipped == held
    assert (gradient == 0) == bool(held)
    bound = {1.5: 1.3, 0.5: 0.8}[ratio]
    assert loss == pytest.approx(-(bound if held else ratio) * advantage, rel=1e-6)


def test_kl_is_zero_at_the_reference_and_unbiased() -> None:
    x = torch.tensor([-1.0, -2.0])
    assert not kl_estimate(x, x).any()
    p, q = torch.tensor([0.2, 0.5, 0.3]), torch.tensor([0.4, 0.3, 0.3])
    expected = (p * (p / q).log()).sum()
    torch.testing.assert_close((p * kl_estimate(p.log(), q.log())).sum(), expected)


def test_the_kl_pulls_towards_the_reference() -> None:
    x = torch.tensor([[-1.0]], requires_grad=True)
    zero = torch.zeros(1, 1)
    token_loss(x, x.detach(), zero - 2.0, zero, LossRule(kl_weight=0.5)).loss.sum().backward()
    assert x.grad is not None
    assert x.grad.item() == pytest.approx(0.5 * (1 - torch.tensor(-1.0).exp().item()))


def test_weights_sum_to_the_number_of_rollouts() -> None:
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]], dtype=torch.bool)
    assert token_weights(mask, "sequence").tolist() == [[0.5, 0.5, 0, 0], [0.25] * 4]
    torch.testing.assert_close(token_weights(mask, "token"), mask * (2 / 6))
    empty = token_weights(torch.tensor([[True, True], [False, False]]), "sequence")
    assert empty.sum() == 1


def test_no_rollout_at_all_weighs_nothing() -> None:
    for aggregation in ("sequence", "token"):
        assert not token_weights(torch.zeros(2, 3, dtype=torch.bool), aggregation).any()


def test_tokens_have_the_advantage_of_their_turn() -> None:
    advantage = torch.tensor([[1.0, 2.0], [3.0, 0.0]])
    turn = torch.tensor([[-1, 0, 0, -1, 1], [-1, -1, 0, -1, -1]])
    assert token_advantages(advantage, turn).tolist() == [[0, 1, 1, 0, 2], [0, 0, 3, 0, 0]]


def test_a_rollout_that_the_policy_left_behind_is_stale() -> None:
    old, mask = torch.zeros(2, 3), torch.tensor([[True, True, False], [True, True, True]])
    logp = torch.tensor([[0.1, -0.1, 9.0], [0.5, -0.5, 0.5]])
    assert stale(logp, old, mask, 0.2).tolist() == [False, True]


def chosen(seed: int = 0, positions: int = 600) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(positions, 17, generator=generator) * 3
    return logits.requires_grad_(), torch.randint(0, 17, (positions,), generator=generator)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_log_probs_equal_the_reference_with_gradients(temperature: float) -> None:
    (fast, targets), (slow, _) = chosen(), chosen()
    found, expected = log_probs(fast, targets, temperature), naive(slow, targets, temperature)
    weights = torch.linspace(-1, 1, len(targets))
    (found[0] * weights).sum().backward()
    (expected[0] * weights).sum().backward()
    for left, right in ((found[0], expected[0]), (found[1], expected[1]), (fast.grad, slow.grad)):
        torch.testing.assert_close(left, right, atol=1e-6, rtol=1e-5)


def test_log_probs_of_nothing_are_nothing() -> None:
    logits, targets = chosen(positions=0)
    found, _ = log_probs(logits, targets)
    found.sum().backward()
    assert found.shape == (0,)


@pytest.mark.parametrize("num", [1, 5])
def test_memory_does_not_grow_with_the_conversations_of_a_report(num: int) -> None:
    """What the backward pass needs of one is made again for it: the same bits, and nothing is kept meanwhile."""
    model, generator = newborn(40), torch.Generator().manual_seed(0)
    ids, positions = torch.randint(0, 40, (1, num * 12), generator=generator), torch.arange(12).repeat(num)[None]
    chosen, kept = positions > 4, list[weakref.ref]()
    model.model.layers[0].mlp.down_proj.register_forward_pre_hook(lambda _, given: kept.append(weakref.ref(given[0])))
    found = policy_log_probs(model, ids, chosen, 0.8, positions)
    assert sum(one() is not None for one in kept) == (1 if num == 1 else 0)
    parts = [slice(None), *(slice(begin, begin + 12) for begin in range(0, num * 12, 12))][-num:]
    apart = [policy_log_probs(model, ids[:, part], chosen[:, part], 0.8) for part in parts]
    for together, each in zip(found, zip(*apart, strict=True), strict=True):
        assert torch.equal(together, torch.cat(each, dim=1))
    gradients = [
        torch.autograd.grad(logp.square().sum(), list(model.parameters()))
        for logp in (found[0], torch.cat([logp for logp, _ in apart], dim=1))
    ]
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))
