"""Figures of experience: what people watch while a policy learns, and what a run ends with."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import torch

from stages.agent.rl.batch import rewards
from stages.agent.rl.experience import Diary, Experience

if TYPE_CHECKING:
    from stages.agent.rl.settings import PolicyParameters


def curves_of(experiences: Sequence[Experience], params: PolicyParameters) -> dict[str, float]:
    """Means over a set's rollouts; `informed` is the share of groups whose rewards differ at all."""
    rollouts = [found.rollout for found in experiences]
    turns = sum(rollout.num_turns for rollout in rollouts)
    figures = {
        "reward": _mean(rollout.trajectory.reward for rollout in rollouts),
        "success": _mean(found.success for found in experiences),
        "answered": _mean(not rollout.cut for rollout in rollouts),
        "malformed": sum(rollout.counts.get("malformed", 0) for rollout in rollouts) / max(1, turns),
        "turns": turns / len(rollouts),
        "calls": _mean(rollout.counts.get("calls", 0) for rollout in rollouts),
        "sampled_tokens": _mean(rollout.num_sampled for rollout in rollouts),
        "rollout_tokens": _mean(len(rollout.ids) for rollout in rollouts),
        "informed": _informed(experiences),
    }
    return figures | _gains(experiences, params)


def summary(diary: Diary, params: PolicyParameters) -> dict[str, float]:
    """Mean figures of the last fifth of a run's sets, and of its first fifth as `first_…`."""
    curves = [curves_of(found, params) for found in diary.all(params.num_sets)]
    part = max(1, len(curves) // 5)
    told = ("reward", "success", "answered", "malformed", "turns", "sampled_tokens")
    last = {name: _mean(point[name] for point in curves[-part:]) for name in told}
    return last | {f"first_{name}": _mean(point[name] for point in curves[:part]) for name in ("reward", "success")}


def _gains(experiences: Sequence[Experience], params: PolicyParameters) -> dict[str, float]:
    """Mean information gain of the turns that have one, before clipping; nothing where none is asked for."""
    if not any(found.scores for found in experiences):
        return {}
    found = rewards(experiences, params)
    gains = found.gain[found.has_gain]
    return {"gain": gains.mean().item() if len(gains) else 0.0}


def _informed(experiences: Sequence[Experience]) -> float:
    groups: dict[int, set[float]] = {}
    for found in experiences:
        groups.setdefault(found.group, set()).add(found.rollout.trajectory.reward)
    return _mean(len(values) > 1 for values in groups.values())


def _mean(values: Iterable[float]) -> float:
    found = torch.tensor([float(value) for value in values], dtype=torch.float64)
    return found.mean().item() if len(found) else 0.0
