"""Routing, making and the grouped forward of experts, as pure functions, against what they must equal."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from grafts.experts.feed_forward import mix_grouped, naive_mix
from grafts.experts.making import (
    dropped_units,
    generator,
    mean,
    random_router,
    renewed,
    share_of_units,
    with_noise,
)
from grafts.experts.routing import (
    balance_loss,
    expert_load,
    router_entropy,
    router_logits,
    top_gates,
    within_capacity,
    z_loss,
)
from tests.machine import one_thread as one_thread


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 9), st.integers(1, 6), st.data(), st.booleans(), st.booleans())
def test_grouped_equals_naive_and_so_do_its_gradients(num_tokens, num_experts, data, renormalise, every):
    top_k = data.draw(st.integers(1, num_experts))
    experts = nn.ModuleList(nn.Linear(5, 5) for _ in range(num_experts)).double()
    x, logits = normal(num_tokens, 5), normal(num_tokens, num_experts, seed=1)
    results = []
    for mix in (lambda *a: mix_grouped(*a, every=every), naive_mix):
        leaves = [x.clone().requires_grad_(), logits.clone().requires_grad_()]
        gates, chosen = top_gates(leaves[1], top_k, renormalise=renormalise)
        output = mix(leaves[0], gates, chosen, experts)
        weights = [*leaves, *experts.parameters()]
        grads = torch.autograd.grad((output * normal(*output.shape, seed=2)).sum(), weights, allow_unused=True)
        results.append(
            [output, *(torch.zeros_like(w) if g is None else g for g, w in zip(grads, weights, strict=True))]
        )
    for fast, slow in zip(*results, strict=True):
        torch.testing.assert_close(fast, slow, rtol=0, atol=1e-12)


def test_every_expert_is_called_while_training_even_without_tokens():
    experts = nn.ModuleList(nn.Linear(3, 3) for _ in range(4)).double()
    gates, chosen = torch.ones(2, 1, dtype=torch.float64), torch.tensor([[1], [1]])
    mix_grouped(normal(2, 3), gates, chosen, experts, every=True).sum().backward()
    assert all(expert.weight.grad is not None for expert in experts)
    assert experts[0].weight.grad.abs().sum() == 0 < experts[1].weight.grad.abs().sum()


def test_renormalised_gates_are_the_softmax_over_those_chosen():
    logits = normal(7, 5)
    gates, chosen = top_gates(logits, 3, renormalise=True)
    torch.testing.assert_close(gates, logits.gather(1, chosen).softmax(-1))
    raw, same = top_gates(logits, 3, renormalise=False)
    assert torch.equal(chosen, same)
    torch.testing.assert_close(raw, logits.softmax(-1).gather(1, chosen))


def test_the_router_computes_in_float32_whatever_the_model_does():
    x, weight = normal(4, 8, dtype=torch.bfloat16), normal(3, 8, seed=1, dtype=torch.bfloat16)
    found = router_logits(x, weight)
    assert found.dtype == torch.float32
    assert torch.equal(found, x.float() @ weight.float().T)


def test_losses_of_the_router():
    even = torch.eye(4, dtype=torch.float64).repeat(8, 1) * 1e-9  # every expert as often, probabilities alike
    assert balance_loss(even, 1).item() == pytest.approx(1)
    assert balance_loss(torch.eye(4)[[0]].repeat(8, 1) * 50, 1).item() == pytest.approx(4), "all on one of four"
    assert balance_loss(torch.eye(4).repeat(8, 1) * 3, 1) == pytest.approx(1), "sharp but even"
    assert balance_loss(normal(64, 4) + torch.tensor([1.0, 0, 0, 0]), 2) > 1
    logits = normal(9, 3)
    assert z_loss(logits) > 0
    assert z_loss(logits - logits.logsumexp(-1, keepdim=True)).item() == pytest.approx(0, abs=1e-24)
    assert router_entropy(torch.zeros(5, 4)).item() == pytest.approx(math.log(4))
    assert router_entropy(torch.eye(4) * 60).item() == pytest.approx(0, abs=1e-9)
    assert expert_load(normal(10, 4), 2).sum().item() == pytest.approx(1)


def test_capacity_serves_first_choices_first_and_earlier_tokens_first():
    chosen = torch.tensor([[0, 1], [0, 1], [0, 1], [1, 0]])  # 8 assignments, 2 experts, room for 4 each
    kept = within_capacity(chosen, 2, 1.0)
    assert kept.tolist() == [[True, True], [True, True], [True, True], [True, True]]
    tight = within_capacity(chosen, 2, 0.5)  # room for 2
    assert tight.tolist() == [[True, True], [True, False], [False, False], [True, False]]


def test_the_mean_of_equal_tensors_is_that_tensor_bit_for_bit():
    for dtype in (torch.float32, torch.bfloat16):
        tensor = normal(50, 3, dtype=dtype)
        for count in (1, 3, 7):
            assert torch.equal(mean([tensor] * count), tensor)
    torch.testing.assert_close(mean([torch.zeros(2), torch.ones(2)]), torch.full((2,), 0.5))


def test_units_start_anew_together_and_alike():
    units = dropped_units(40, 0.3, generator(0, "units"))
    assert len(units) == 12 == len(set(units.tolist()))
    assert torch.equal(units, dropped_units(40, 0.3, generator(0, "units")))
    weight = normal(40, 60, dtype=torch.float32) * 3 + 1
    new = renewed(weight, units, 0, generator(0, "gate"))
    changed = (new != weight).any(1).nonzero().flatten()
    assert torch.equal(changed, units)
    assert new[units].mean().item() == pytest.approx(weight[units].mean().item(), abs=0.5)
    assert new[units].std().item() == pytest.approx(weight[units].std().item(), rel=0.15)
    down = renewed(weight.T, units, 1, generator(0, "down"))
    assert torch.equal((down != weight.T).any(0).nonzero().flatten(), units)
    assert renewed(weight, units[:0], 0, generator(0, "gate")) is weight


def test_noise_is_a_share_of_the_matrix_s_own_deviation():
    weight = normal(80, 80, dtype=torch.float32) * 5
    assert with_noise(weight, 0.0, generator(0)) is weight
    assert (with_noise(weight, 0.1, generator(0)) - weight).std().item() == pytest.approx(0.5, rel=0.1)


def test_shares_of_an_expert_have_the_router_of_the_expert():
    weight = random_router(3, 4, 16, 0.02, generator(1, "router"))
    assert weight.shape == (12, 16)
    assert torch.equal(weight.unflatten(0, (3, 4)), weight[::4, None].expand(3, 4, 16))
    halves = [share_of_units(normal(6, 4), share, 2, 0) for share in range(2)]
    assert torch.equal(torch.cat(halves), normal(6, 4))
