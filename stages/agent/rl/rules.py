"""The rules of a policy's update as plain values: how rewards become advantages, and advantages a loss. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

GainForm = Literal["log_probability", "probability"]
"""What a gain is a difference of: the answer's mean log-probability a token, or its geometric mean probability."""
Credit = Literal["igpo", "gain", "outcome", "grpo"]
"""What counts: `igpo` gains and outcome, `gain` or `outcome` one of them, `grpo` the outcome without penalties."""
Scaling = Literal["separate", "scaled"]
"""Gains and outcomes normalised each by themselves; `scaled` also brings gains to the outcomes' size (DR-Venus)."""
Aggregation = Literal["sequence", "token"]
"""`sequence`: the mean of each rollout's mean over its tokens (GRPO); `token`: the mean over all tokens (DAPO)."""


@dataclass(frozen=True)
class CreditRule:
    """How rewards become advantages; see the fields of `agent.rl`."""

    credit: Credit = "igpo"
    scaling: Scaling = "scaled"
    discount: float = 1.0
    """γ between rewarded turns."""
    final_weight: float | None = None
    """w: a rollout of T turns is discounted by γ = w^(1/T) in place of `discount`.

    So where every turn has a reward, the outcome reaches the first of them with w^((T-1)/T): between 1 and w, and all
    but alike for long rollouts.
    """
    format_penalty: float = 1.0
    """λ: the reward of a malformed turn is -λ."""
    gain_clip: float = 5.0
    """Largest size of a gain before normalisation."""
    gain: GainForm = "log_probability"
    gain_tools: tuple[str, ...] | None = None
    """Tools whose calls have a gain; None: all."""
    answer_thought: str = ""
    """What the turn thinks in which the true answer is scored."""

    @property
    def scores(self) -> bool:
        """Whether gains are asked for, and so the likelihood of the true answer."""
        return self.credit in ("igpo", "gain")


@dataclass(frozen=True)
class LossRule:
    """How advantages become a loss; see the fields of `agent.rl`."""

    clip_low: float = 0.2
    clip_high: float = 0.2
    kl_weight: float = 1e-3
    """β of the KL to the reference."""
