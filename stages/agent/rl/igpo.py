"""Credit for the turns of agents: information gain and outcome, normalised and accumulated (IGPO, arXiv 2510.14967).

Pure functions of small tensors. N rollouts have at most T turns each, a turn being one message of the policy; rollouts
of one question form a group. Nothing here has a gradient: rewards are constants to the policy.

A gain of exactly 0 is a reward like any other: which turns have a gain is told by a mask, never by the value.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

import torch
from torch import Tensor

from stages.agent.rl.rules import CreditRule, GainForm

EPSILON: Final = 1e-6
SMALLEST_SCALE_TARGET: Final = 0.3
LARGEST_SCALE: Final = 10.0


@dataclass(frozen=True)
class Rewards:
    """What N rollouts of at most T turns earned, before any normalisation; float64."""

    gain: Tensor
    """Information gain of each turn; read only where `has_gain`."""
    has_gain: Tensor
    outcome: Tensor
    """Of each whole rollout, [N]; it belongs to the last turn."""
    num_turns: Tensor
    """Of each rollout, [N]."""
    group: Tensor
    """Which question a rollout belongs to, [N]; any integers."""

    @property
    def last(self) -> Tensor:
        """Whether a turn is the last of its rollout, [N, T]."""
        return self._turn == self.num_turns.unsqueeze(1) - 1

    @property
    def before_last(self) -> Tensor:
        """Whether a turn is followed by another, [N, T]."""
        return self._turn < self.num_turns.unsqueeze(1) - 1

    @property
    def _turn(self) -> Tensor:
        return torch.arange(self.gain.shape[1], device=self.gain.device)


def information_gain(scores_NT: Tensor, form: GainForm) -> Tensor:
    """The gain of each turn [N, T], float64, without gradient; 0 in the last column, which nothing follows.

    `scores_NT[i, t]` is the mean log-probability (nats a token, at most 0) of the true answer after everything that
    stood before turn t. The gain of turn t is what that turn and its tool's result add to it.
    """
    values_NT = scores_NT.detach().double()
    if form == "probability":
        values_NT = values_NT.exp()
    gain_NT = torch.zeros_like(values_NT)
    gain_NT[:, :-1] = values_NT.diff(dim=1)
    return gain_NT


def rewards_of(
    scores_NT: Tensor, form: GainForm, allowed_NT: Tensor, outcome_N: Tensor, num_turns_N: Tensor, group_N: Tensor
) -> Rewards:
    """The rewards of rollouts with the scores of `information_gain`.

    The last turn of a rollout has the outcome and no gain. Of the others, those that `allowed_NT` (the turn filter)
    leaves have one. Columns beyond a rollout's turns are not read, whatever they hold.
    """
    found = Rewards(information_gain(scores_NT, form), allowed_NT, outcome_N.detach().double(), num_turns_N, group_N)
    before_last_NT = found.before_last
    return replace(found, gain=found.gain.where(before_last_NT, 0.0), has_gain=allowed_NT & before_last_NT)


def with_format_penalty(rewards: Rewards, malformed_NT: Tensor, penalty: float) -> Rewards:
    """Rewards in which a malformed turn earns exactly `-penalty`, whatever it gained or the judge said.

    That holds for turns that the turn filter leaves out too: what is malformed called no tool to filter by.
    """
    wrong_NT = malformed_NT & rewards.before_last
    wrong_N = (malformed_NT & rewards.last).any(1)
    return replace(
        rewards,
        gain=rewards.gain.masked_fill(wrong_NT, -penalty),
        has_gain=rewards.has_gain | wrong_NT,
        outcome=rewards.outcome.masked_fill(wrong_N, -penalty),
    )


def clipped(rewards: Rewards, limit: float) -> Rewards:
    """Rewards whose gains are no larger than `limit`: log-probabilities may start very low."""
    return replace(rewards, gain=rewards.gain.clamp(-limit, limit))


def advantages(rewards: Rewards, malformed_NT: Tensor, rule: CreditRule) -> Tensor:
    """The advantage of every turn [N, T], 0 beyond a rollout's turns: what each token of that turn is weighted with."""
    rewards = clipped(rewards, rule.gain_clip)
    if rule.credit != "grpo":
        rewards = with_format_penalty(rewards, malformed_NT, rule.format_penalty)
    if rule.credit in ("outcome", "grpo"):
        rewards = replace(rewards, has_gain=torch.zeros_like(rewards.has_gain))
    normalised_NT = _normalised(rewards, rule)
    rewarded_NT = rewards.has_gain | rewards.last if rule.credit != "gain" else rewards.has_gain
    return accumulated(normalised_NT, rewarded_NT, rewards.num_turns, discounts(rewards.num_turns, rule))


def discounts(num_turns_N: Tensor, rule: CreditRule) -> Tensor:
    """γ of each rollout, [N]: `discount`, or the adaptive w^(1/T)."""
    if rule.final_weight is None:
        return torch.full(num_turns_N.shape, rule.discount, dtype=torch.float64, device=num_turns_N.device)
    return rule.final_weight ** (1 / num_turns_N.double())


def accumulated(reward_NT: Tensor, rewarded_NT: Tensor, num_turns_N: Tensor, discount_N: Tensor) -> Tensor:
    """Discounted sums of what follows: R_t = r_t + γ R_(t+1); a turn without a reward passes on R_(t+1) as it is.

    So a turn that the filter leaves out has the return of the next rewarded turn, and γ counts rewarded turns.
    """
    result_NT, following_N = torch.zeros_like(reward_NT), torch.zeros_like(discount_N)
    for turn in reversed(range(reward_NT.shape[1])):
        rewarded_N = reward_NT[:, turn] + discount_N * following_N
        following_N = torch.where(rewarded_NT[:, turn], rewarded_N, following_N)
        result_NT[:, turn] = following_N
    beyond_NT = torch.arange(reward_NT.shape[1], device=reward_NT.device) >= num_turns_N.unsqueeze(1)
    return result_NT.masked_fill(beyond_NT, 0.0)


def z_scores(values: Tensor, counts: Tensor, group: Tensor) -> Tensor:
    """(r - mean) / (std + 1e-6) within each group over the entries that count; 0 elsewhere.

    A single entry has std 1, and equal entries are exactly 0: rounding would otherwise be divided by 1e-6.
    `values`, `counts` and `group` have one shape.
    """
    result = torch.zeros_like(values)
    for label in group[counts].unique():
        chosen = counts & (group == label)
        result[chosen] = _standardised(values[chosen])
    return result


def gain_scale(gain_NT: Tensor, has_gain_NT: Tensor, outcome_N: Tensor) -> Tensor:
    """The factor that brings normalised gains to the size of normalised outcomes over the whole batch (DR-Venus).

    min(10, max(0.3, mean |outcome|) / (mean |gain| + 1e-6)), a scalar.
    """
    mean_gain = gain_NT[has_gain_NT].abs().mean() if has_gain_NT.any() else gain_NT.new_zeros(())
    target = outcome_N.abs().mean().clamp(min=SMALLEST_SCALE_TARGET)
    return (target / (mean_gain + EPSILON)).clamp(max=LARGEST_SCALE)


def _normalised(rewards: Rewards, rule: CreditRule) -> Tensor:
    """Normalised gains, and the normalised outcome at the last turn, [N, T]."""
    group_NT = rewards.group.unsqueeze(1).expand_as(rewards.gain)
    gain_NT = z_scores(rewards.gain, rewards.has_gain, group_NT)
    everywhere_N = torch.ones_like(rewards.outcome, dtype=torch.bool)
    outcome_N = z_scores(rewards.outcome, everywhere_N, rewards.group)
    if rule.scaling == "scaled" and rule.credit == "igpo":
        gain_NT = gain_NT * gain_scale(gain_NT, rewards.has_gain, outcome_N)
    if rule.credit == "gain":
        return gain_NT
    return torch.where(rewards.last, outcome_N.unsqueeze(1), gain_NT)


def _standardised(values_K: Tensor) -> Tensor:
    if values_K.numel() == 1:
        return torch.zeros_like(values_K)
    if values_K.min() == values_K.max():
        return torch.zeros_like(values_K)
    return (values_K - values_K.mean()) / (values_K.std() + EPSILON)
