"""What episodes of an agent add up to: figures over all, by seed, and by kind of question."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from stages.agent.conversation.messages import Trajectory

FIGURES: Final = (
    *("success", "f1", "calls", "turns", "tokens", "total_tokens"),
    *("well_formed", "answered", "failed_calls"),
)
"""The names of `figures`."""


@dataclass(frozen=True)
class Outcome:
    """An episode that is over."""

    seed: int
    trajectory: Trajectory
    success: bool
    tokens: int
    """Tokens that the model wrote."""
    total_tokens: int
    """Those and what it read: of the whole conversation."""
    counts: Mapping[str, int]
    """Of turns, calls, malformed turns and failed calls, see `Episode`."""

    @property
    def failed_calls(self) -> int:
        """Calls that gave no result."""
        return sum(count for name, count in self.counts.items() if name.startswith("failed_"))


def figures(outcomes: Sequence[Outcome]) -> dict[str, float]:
    """Means over episodes; `well_formed` is over turns."""
    turns, malformed = (sum(outcome.counts.get(name, 0) for outcome in outcomes) for name in ("turns", "malformed"))
    return {
        "success": statistics.fmean(outcome.success for outcome in outcomes),
        "f1": statistics.fmean(outcome.trajectory.reward for outcome in outcomes),
        "calls": statistics.fmean(outcome.counts.get("calls", 0) for outcome in outcomes),
        "turns": turns / len(outcomes),
        "tokens": statistics.fmean(outcome.tokens for outcome in outcomes),
        "total_tokens": statistics.fmean(outcome.total_tokens for outcome in outcomes),
        "well_formed": 1 - malformed / turns if turns else 0.0,
        "answered": statistics.fmean(outcome.trajectory.ending == "answer" for outcome in outcomes),
        "failed_calls": statistics.fmean(outcome.failed_calls for outcome in outcomes),
    }


def summary(outcomes: Sequence[Outcome]) -> tuple[dict[str, float], dict[str, Any]]:
    """The figures over all, with how far the successes of seeds and questions scatter; and the tables of a report."""
    by_seed = _by(outcomes, lambda outcome: str(outcome.seed))
    successes = [row["success"] for row in by_seed.values()]
    found = figures(outcomes)
    questions: dict[str, list[bool]] = {}
    for outcome in outcomes:
        questions.setdefault(outcome.trajectory.task, []).append(outcome.success)
    found["success_stderr"] = standard_error([statistics.fmean(right) for right in questions.values()])
    if len(successes) > 1:
        found["success_seed_std"] = statistics.stdev(successes)
    failures = Counter[str]()
    for outcome in outcomes:
        failures.update({name: count for name, count in outcome.counts.items() if name.startswith("failed_")})
    tables = {
        "episodes": len(outcomes),
        "by_seed": by_seed,
        "by_kind": _by(outcomes, lambda outcome: outcome.trajectory.kind or "all"),
        "endings": dict(Counter(outcome.trajectory.ending for outcome in outcomes)),
        "failed_calls": dict(failures),
    }
    return found, tables


def _by(outcomes: Sequence[Outcome], key: Callable[[Outcome], str]) -> dict[str, dict[str, float]]:
    groups: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        groups.setdefault(key(outcome), []).append(outcome)
    return {name: {"episodes": len(group), **figures(group)} for name, group in groups.items()}


def standard_error(values: Sequence[float]) -> float:
    """Of the mean of independent values; 0 for a single one."""
    return statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0
