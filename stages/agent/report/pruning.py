"""From what an expert did to what a student should see: cut at the best draft, in balance (arXiv 2602.06540)."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from typing import TypeVar

T = TypeVar("T")


def best_draft(scores: Sequence[float], margin: float = 0.0) -> int:
    """The earliest of the drafts (at least one) whose score is at most `margin` below the best.

    A noisy judge has spurious maxima: with a margin, a later draft has to be better by more than that to count.
    """
    best = max(scores)
    return next(number for number, score in enumerate(scores) if score >= best - margin)


def cut_at(decisions: Sequence[int], scores: Sequence[float], margin: float = 0.0) -> int:
    """The step, counted from 0, that has to become TERMINATE: the decision taken on the best draft.

    `decisions` are the steps at which the writer expanded or terminated, `scores` those of the drafts they were taken
    on.
    """
    assert len(decisions) == len(scores), f"{len(decisions)} decisions, {len(scores)} scores"
    return decisions[best_draft(scores, margin)]


def balanced(items: Sequence[T], label: Callable[[T], Hashable], ratio: float, rng: random.Random) -> list[T]:
    """The items in their order, without some of those with frequent labels.

    Then no label counts more than `ratio` times as often as the rarest, and nothing of the rarest is lost.
    """
    counts = Counter(label(item) for item in items)
    most = int(ratio * min(counts.values(), default=0))
    kept = set[int]()
    for name in counts:
        places = [place for place, item in enumerate(items) if label(item) == name]
        kept.update(rng.sample(places, min(most, len(places))))
    return [item for place, item in enumerate(items) if place in kept]
