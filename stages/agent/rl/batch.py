"""Experience as tensors: tokens, advantages and weights of a set of N rollouts of at most L tokens and T turns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from stages.agent.rl.experience import Experience
from stages.agent.rl.igpo import Rewards, advantages, rewards_of
from stages.agent.rl.losses import token_advantages, token_weights
from stages.agent.rl.rules import CreditRule
from stages.agent.rollout.rollouts import Rollout
from stages.training.recipe import columns_needed

if TYPE_CHECKING:
    from stages.agent.rl.settings import PolicyParameters


@dataclass(frozen=True)
class Tokens:
    """What an update reads of each rollout, padded on the right, [N, L]."""

    ids: Tensor
    sampled: Tensor
    """Whether the policy itself wrote a token."""
    old: Tensor
    """Log-probability under the policy that sampled it, nats."""
    reference: Tensor
    """Log-probability under the reference; that of `old` without one."""
    advantage: Tensor
    weight: Tensor
    """Of a token in the loss; over the set they sum to N."""
    positions: Tensor | None = None
    """Of a token in its conversation, which each is read by itself; None where every rollout is one conversation."""

    @classmethod
    def of(cls, experiences: Sequence[Experience], params: PolicyParameters) -> Tokens:
        """The tensors of a whole set, on the CPU."""
        rollouts = [found.rollout for found in experiences]
        turn_NL = padded([rollout.turn_of for rollout in rollouts], -1)
        old_NL = padded([rollout.logp for rollout in rollouts], 0.0)
        reference_NL = padded([found.reference or found.rollout.logp for found in experiences], 0.0)
        dropped_N = torch.tensor([params.drop_cut and rollout.cut for rollout in rollouts])
        return cls(
            ids=padded([rollout.ids for rollout in rollouts], 0),
            sampled=turn_NL >= 0,
            old=old_NL,
            reference=reference_NL,
            advantage=token_advantages(turn_advantages(experiences, params), turn_NL).float(),
            weight=token_weights((turn_NL >= 0) & ~dropped_N.unsqueeze(1), params.aggregation),
            positions=positions_of(rollouts),
        )

    def rows(self, chosen_B: Tensor, device: torch.device) -> Tokens:
        """Some of the rollouts, without the columns in which none of them has a token of the policy."""
        length = columns_needed(self.sampled[chosen_B.cpu()])
        parts = (getattr(self, part.name) for part in fields(self))
        return Tokens(*(None if x is None else x[chosen_B.cpu(), :length].to(device) for x in parts))


def turn_advantages(experiences: Sequence[Experience], params: PolicyParameters) -> Tensor:
    """The advantage of every turn [N, T], see `stages.agent.rl.igpo`."""
    malformed_NT = padded([[turn.fault is not None for turn in _turns(found)] for found in experiences], False)
    return advantages(rewards(experiences, params), malformed_NT, params.credit_rule)


def rewards(experiences: Sequence[Experience], params: PolicyParameters) -> Rewards:
    """Gains and outcomes before penalties and normalisation."""
    num_turns = [found.rollout.num_turns for found in experiences]
    rule, scores = params.credit_rule, [one.scores or [0.0] * one.rollout.num_turns for one in experiences]
    allowed = [[_has_gain(turn.call and turn.call.name, rule) for turn in _turns(found)] for found in experiences]
    return rewards_of(
        padded(scores, 0.0),
        rule.gain,
        padded(allowed, False),
        torch.tensor([found.rollout.trajectory.reward for found in experiences]),
        torch.tensor(num_turns),
        torch.tensor([found.group for found in experiences]),
    )


def positions_of(rollouts: Sequence[Rollout]) -> Tensor | None:
    """Positions [N, L] that start again with each conversation; None where no rollout has several."""
    if all(len(rollout.begins) == 1 for rollout in rollouts):
        return None
    return padded([rollout.positions for rollout in rollouts], 0)


def padded(rows: Sequence[Sequence[float]], fill: float) -> Tensor:
    """Rows of numbers under each other, [N, max(1, longest)], filled up on the right; of the type of `fill`."""
    length = max(1, *(len(row) for row in rows)) if rows else 1
    return torch.tensor([[*row, *[fill] * (length - len(row))] for row in rows], dtype=_DTYPES[type(fill)])


_DTYPES = {bool: torch.bool, int: torch.long, float: torch.float32}


def _turns(found: Experience) -> tuple:
    return found.rollout.trajectory.turns


def _has_gain(tool: str | None, rule: CreditRule) -> bool:
    return rule.gain_tools is None or tool in rule.gain_tools
