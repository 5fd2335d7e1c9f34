"""Pruning at the best draft, and balance over actions."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.agent.report.pruning import balanced, best_draft, cut_at

scores = st.lists(st.floats(0, 1), min_size=1, max_size=12)


@given(scores)
def test_the_best_draft_is_the_earliest_of_the_best(found: list[float]) -> None:
    place = best_draft(found)
    assert found[place] == max(found)
    assert max(found) not in found[:place]


@given(scores, st.floats(0, 0.5))
def test_with_a_margin_later_drafts_have_to_be_better_by_more(found: list[float], margin: float) -> None:
    place = best_draft(found, margin)
    assert place <= best_draft(found)
    assert found[place] >= max(found) - margin
    assert all(score < max(found) - margin for score in found[:place])


@pytest.mark.parametrize(("margin", "step"), [(0.0, 9), (0.1, 9), (0.11, 5), (0.5, 3)])
def test_the_cut_is_the_decision_on_the_best_draft(margin: float, step: int) -> None:
    assert cut_at([3, 5, 7, 9, 11], [0.5, 0.75, 0.625, 0.859375, 0.859375], margin) == step


@given(
    st.lists(st.sampled_from(("search", "write", "expand", "terminate")), max_size=80),
    st.floats(1, 4),
    st.integers(0, 9),
)
def test_no_label_is_left_more_often_than_the_ratio_allows(labels: list[str], ratio: float, seed: int) -> None:
    items = list(enumerate(labels))
    kept = balanced(items, lambda item: item[1], ratio, random.Random(seed))
    before, found = Counter(labels), Counter(label for _, label in kept)
    rarest = min(before.values(), default=0)
    assert found == {label: min(count, int(ratio * rarest)) for label, count in before.items()}
    assert kept == sorted(kept), "in their order"


def test_the_seed_decides_what_stays() -> None:
    items = [(number, "write") for number in range(40)] + [(40, "expand")]
    draws = [balanced(items, lambda item: item[1], 3, random.Random(seed)) for seed in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]
    assert len(draws[0]) == 4
