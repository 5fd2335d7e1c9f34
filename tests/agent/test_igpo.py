"""Identities of credit by turns: information gain, normalisation, the turn filter, discounts, penalties."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from stages.agent.rl.igpo import (
    Rewards,
    accumulated,
    advantages,
    discounts,
    gain_scale,
    information_gain,
    rewards_of,
    with_format_penalty,
    z_scores,
)
from stages.agent.rl.rules import CreditRule

NUM_TURNS = torch.tensor([4, 2, 3, 1])
GROUP = torch.tensor([7, 7, 5, 5])
OUTCOME = torch.tensor([1.0, 0.0, 0.5, 0.25])


def scores(seed: int = 0) -> Tensor:
    return -torch.rand(4, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 3


def everything() -> Tensor:
    return torch.ones(4, 4, dtype=torch.bool)


def nothing() -> Tensor:
    return torch.zeros(4, 4, dtype=torch.bool)


def rewards(allowed: Tensor | None = None) -> Rewards:
    allowed = everything() if allowed is None else allowed
    return rewards_of(scores(), "log_probability", allowed, OUTCOME, NUM_TURNS, GROUP)


def turns_of(rollout: int) -> slice:
    return slice(0, int(NUM_TURNS[rollout]))


def test_gains_telescope() -> None:
    found, s = rewards(), scores()
    for rollout, num in enumerate(NUM_TURNS.tolist()):
        total = found.gain[rollout][found.has_gain[rollout]].sum()
        torch.testing.assert_close(total, s[rollout, num - 1] - s[rollout, 0])


def test_undiscounted_returns_have_a_closed_form() -> None:
    found, s = rewards(), scores()
    reward = torch.where(found.last, found.outcome.unsqueeze(1), found.gain)
    returns = accumulated(reward, found.has_gain | found.last, NUM_TURNS, torch.ones(4, dtype=torch.float64))
    for rollout, num in enumerate(NUM_TURNS.tolist()):
        expected = s[rollout, num - 1] - s[rollout, :num] + OUTCOME[rollout]
        torch.testing.assert_close(returns[rollout, :num], expected)
        assert not returns[rollout, num:].any()


def test_a_probability_gain_is_a_difference_of_probabilities() -> None:
    s = torch.tensor([[math.log(0.2), math.log(0.5), math.log(0.4)]])
    gain = information_gain(s, "probability")
    torch.testing.assert_close(gain, torch.tensor([[0.3, -0.1, 0.0]], dtype=torch.float64), atol=1e-7, rtol=0)


def test_no_gradient_reaches_the_scores() -> None:
    s = scores().requires_grad_()
    found = rewards_of(s, "probability", everything(), OUTCOME, NUM_TURNS, GROUP)
    assert not advantages(found, nothing(), CreditRule()).requires_grad


def grpo_by_hand() -> Tensor:
    """The z-score of the outcome in its group, on every turn."""
    expected = torch.zeros(4, 4, dtype=torch.float64)
    for pair in ([0, 1], [2, 3]):
        outcomes = OUTCOME[pair].double()
        standard = (outcomes - outcomes.mean()) / (outcomes.std() + 1e-6)
        for rollout, value in zip(pair, standard, strict=True):
            expected[rollout, turns_of(rollout)] = value
    return expected


@pytest.mark.parametrize("rule", [CreditRule(discount=1.0), CreditRule(discount=0.5), CreditRule(credit="outcome")])
def test_without_any_gain_it_is_grpo(rule: CreditRule) -> None:
    torch.testing.assert_close(advantages(rewards(nothing()), nothing(), rule), grpo_by_hand())


def test_grpo_ignores_gains_and_penalties() -> None:
    found = advantages(rewards(), everything(), CreditRule(credit="grpo", discount=0.3))
    torch.testing.assert_close(found, grpo_by_hand())


def test_the_outcome_alone_punishes_malformed_answers_but_no_other_turn() -> None:
    malformed = nothing()
    malformed[0, 1] = malformed[2, 2] = True
    found = advantages(rewards(), malformed, CreditRule(credit="outcome"))
    assert torch.equal(found[:2], grpo_by_hand()[:2])
    assert found[2, 0] < 0 < grpo_by_hand()[2, 0]


def test_a_gain_of_zero_is_a_gain() -> None:
    """Two groups that differ only in whether a gain of exactly 0 counts have different means."""
    s = torch.tensor([[-2.0, -2.0, -1.0], [-2.0, -1.0, -1.0]])
    num_turns, group, outcome = torch.tensor([3, 3]), torch.tensor([0, 0]), torch.zeros(2)
    counted = rewards_of(s, "log_probability", torch.ones(2, 3, dtype=torch.bool), outcome, num_turns, group)
    found = advantages(counted, torch.zeros(2, 3, dtype=torch.bool), CreditRule(credit="gain"))
    z = 0.5 / torch.tensor([0.0, 1, 1, 0]).std().item()
    torch.testing.assert_close(found, torch.tensor([[0.0, z, 0], [0, -z, 0]], dtype=torch.float64), atol=1e-5, rtol=0)


def test_a_filtered_turn_has_the_return_of_the_next_rewarded_one() -> None:
    allowed = everything()
    allowed[0, 1] = False
    found = advantages(rewards(allowed), nothing(), CreditRule(discount=0.7))
    assert found[0, 1] == found[0, 2]
    assert found[0, 0] != found[0, 1]


def test_equal_rewards_give_exactly_zero() -> None:
    """Their mean rounds: without care the difference to it would be divided by a tiny deviation."""
    num_turns, group, outcome = torch.tensor([3, 3, 3]), torch.zeros(3), torch.full((3,), 0.1)
    s, every = torch.full((3, 3), -0.7), torch.ones(3, 3, dtype=torch.bool)
    found = rewards_of(s, "log_probability", every, outcome, num_turns, group)
    assert torch.equal(advantages(found, ~every, CreditRule()), torch.zeros(3, 3, dtype=torch.float64))


def test_a_group_of_one_learns_nothing_and_is_finite() -> None:
    found = advantages(
        rewards_of(scores()[:1], "log_probability", nothing()[:1], OUTCOME[:1], NUM_TURNS[:1], GROUP[:1]),
        nothing()[:1],
        CreditRule(),
    )
    assert torch.equal(found, torch.zeros(1, 4, dtype=torch.float64))


def test_malformed_turns_earn_exactly_the_penalty() -> None:
    malformed = nothing()
    malformed[0, 1] = malformed[1, 1] = True  # a turn in the middle, and the answer of a rollout judged as it may be
    allowed = everything()
    allowed[0, 1] = False  # a turn that is malformed is punished, filter or not
    before = rewards_of(scores(), "log_probability", allowed, torch.ones(4), NUM_TURNS, GROUP)
    after = with_format_penalty(before, malformed, 1.5)
    assert after.gain[0, 1] == -1.5
    assert after.has_gain[0, 1]
    assert after.outcome.tolist() == [1, -1.5, 1, 1]
    others = ~malformed & before.has_gain
    assert torch.equal(after.gain[others], before.gain[others])
    assert after.has_gain.sum() == before.has_gain.sum() + 1


def test_padding_after_the_last_turn_is_never_read() -> None:
    spoilt = scores()
    beyond = torch.arange(4) >= NUM_TURNS.unsqueeze(1)
    spoilt[beyond] = torch.nan
    found = rewards_of(spoilt, "log_probability", everything(), OUTCOME, NUM_TURNS, GROUP)
    rule = CreditRule(discount=0.9)
    assert torch.equal(advantages(found, nothing(), rule), advantages(rewards(), nothing(), rule))


def test_gains_are_brought_to_the_size_of_outcomes() -> None:
    gain, has = torch.tensor([[2.0, -2.0, 9.0]]), torch.tensor([[True, True, False]])
    assert gain_scale(gain, has, torch.tensor([1.0])).item() == pytest.approx(0.5, rel=1e-6)
    assert gain_scale(gain, has, torch.tensor([0.0])).item() == pytest.approx(0.15, rel=1e-6)  # at least 0.3 / 2
    assert gain_scale(gain * 1e-9, has, torch.tensor([1.0])).item() == 10
    assert math.isfinite(gain_scale(gain, has & False, torch.tensor([1.0])).item())


def test_an_adaptive_discount_leaves_the_first_turn_one_weight() -> None:
    gamma = discounts(NUM_TURNS, CreditRule(final_weight=0.3, discount=0.9))
    torch.testing.assert_close(gamma**NUM_TURNS, torch.full((4,), 0.3, dtype=torch.float64))


def test_large_gains_are_clipped() -> None:
    s = torch.tensor([[-100.0, -1.0, -1.0], [-2.0, -1.0, -1.0]])
    num_turns, group = torch.tensor([3, 3]), torch.tensor([0, 0])
    found = rewards_of(s, "log_probability", torch.ones(2, 3, dtype=torch.bool), torch.zeros(2), num_turns, group)
    none = torch.zeros(2, 3, dtype=torch.bool)
    loose, tight = (advantages(found, none, CreditRule(credit="gain", gain_clip=clip)) for clip in (200.0, 1.0))
    assert loose[0, 0] > 2 * loose[1, 0]
    assert tight[0, 0] == tight[1, 0]


@settings(max_examples=60, deadline=None)
@given(
    values=st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=12),
    shift=st.floats(-10, 10),
    scale=st.floats(0.5, 20),
    seed=st.integers(0, 99),
)
def test_z_scores_have_mean_zero_and_forget_shift_and_scale(
    values: list[float], shift: float, scale: float, seed: int
) -> None:
    x = torch.tensor(values, dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    group = torch.randint(0, 3, x.shape, generator=generator)
    counts = torch.rand(x.shape, generator=generator) < 0.8
    z = z_scores(x, counts, group)
    assert z.isfinite().all()
    assert not z[~counts].any()
    for label in range(3):
        chosen = counts & (group == label)
        assert abs(z[chosen].sum().item()) < 1e-6
        if chosen.sum() > 1 and x[chosen].std() > 0.1:
            torch.testing.assert_close(z_scores(x * scale + shift, counts, group)[chosen], z[chosen], atol=1e-4, rtol=0)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), discount=st.floats(0.1, 1.0))
def test_accumulation_equals_the_sum_over_rewarded_turns(seed: int, discount: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    rewarded = torch.rand(1, 6, generator=generator) < 0.6
    reward = torch.randn(1, 6, generator=generator, dtype=torch.float64) * rewarded
    found = accumulated(reward, rewarded, torch.tensor([6]), torch.tensor([discount], dtype=torch.float64))[0]
    for turn in range(6):
        later = [reward[0, k].item() for k in range(turn, 6) if rewarded[0, k]]
        assert found[turn].item() == pytest.approx(sum(discount**n * value for n, value in enumerate(later)))
