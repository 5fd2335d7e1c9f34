from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from grafts.lowrank.glowq import remaining_error, solve
from grafts.lowrank.selection import SCORES, Unit, choose, cumulative, error_drop, knee, ranked
from tests.lowrank.problems import Problem, problem, problems

PARTS = st.lists(st.tuples(st.floats(-1e6, 1e6), st.integers(1, 1000)), min_size=1, max_size=12)


def unit(task: Problem, rank: int, position: int = 0) -> Unit:
    generator = torch.Generator().manual_seed(position)
    weight = torch.randn(task.stacked.shape, generator=generator, dtype=torch.float64)
    found = solve(task.errors, task.roots, rank, randomised=False)
    return Unit(weight, task.stacked, found, position, task.roots.power(weight))


@given(PARTS, st.integers(0, 12_000), st.integers(0, 12_000))
@settings(deadline=None, max_examples=100)
def test_a_larger_budget_restores_all_that_a_smaller_one_does(parts, small: int, extra: int):
    scores, sizes = [score for score, _ in parts], [size for _, size in parts]
    order = ranked(scores)
    less, more = choose(order, sizes, small), choose(order, sizes, small + extra)
    assert more[: len(less)] == less
    assert sum(sizes[index] for index in less) <= small
    assert all(scores[a] >= scores[b] for a, b in pairwise(less))
    assert choose(order, sizes, 0) == []
    assert sorted(choose(order, sizes, sum(sizes))) == list(range(len(parts)))


@given(problems(), st.integers(0, 30))
@settings(deadline=None, max_examples=40)
def test_captured_energy_is_the_share_of_the_error_that_goes(task: Problem, rank: int):
    part = unit(task, rank)
    left = torch.cat(part.correction.left)
    after = remaining_error(part.error, left, part.correction.right, task.roots)
    assert SCORES["energy_capture"](part) == pytest.approx(1 - after / part.correction.total, abs=1e-8)
    assert SCORES["error_drop"](part) == pytest.approx(part.correction.total - after, rel=1e-7, abs=1e-7)
    assert 0 <= SCORES["energy_capture"](part) <= 1 + 1e-12


@given(problems(), st.integers(0, 30))
@settings(deadline=None, max_examples=40)
def test_scores_are_what_paper_and_code_say(task: Problem, rank: int):
    part = unit(task, rank)
    factors = torch.cat(part.correction.left)
    assert SCORES["nuclear"](part) == pytest.approx(factors.square().sum().item(), rel=1e-9, abs=1e-12)
    output = task.roots.whiten(part.weight).square().sum().item()
    numbers = factors.numel() + part.correction.right.numel()
    per_byte = error_drop(part) / output / numbers if numbers else 0
    assert SCORES["gain_per_byte"](part) == pytest.approx(per_byte, rel=1e-5)
    ratio = (part.error.norm() / part.weight.norm()).item()
    assert SCORES["norm_error"](part) == pytest.approx(ratio)
    assert SCORES["normalised_error_ratio"](part) == pytest.approx(ratio**2)
    assert SCORES["frobenius"](part) == pytest.approx(part.error.norm().item())
    cosine = torch.cosine_similarity(part.weight.flatten(), (part.weight - part.error).flatten(), dim=0)
    assert SCORES["cosine"](part) == pytest.approx(1 - cosine.item(), abs=1e-12)


def test_units_without_error_or_weight_have_finite_scores():
    task = problem([3, 2], 5, 0)
    for error in task.errors:
        error.zero_()
    none = unit(task, 2)
    nothing = Unit(torch.zeros(5, 5), torch.zeros(5, 5), none.correction, 0, 0.0)
    for name, score in SCORES.items():
        assert score(none) == pytest.approx(0, abs=1e-12), name
        assert score(nothing) == pytest.approx(0, abs=1e-12), name


def test_without_other_knowledge_earlier_layers_come_first():
    parts = [unit(problem([3], 4, seed), 1, position=seed) for seed in range(4)]
    assert ranked([SCORES["layer_order"](part) for part in parts]) == [0, 1, 2, 3]
    by_drop = ranked([error_drop(part) for part in parts])
    assert by_drop == sorted(range(4), key=lambda index: -error_drop(parts[index]))


def test_a_score_that_is_no_number_is_refused():
    with pytest.raises(ValueError, match="score 1 is not a number"):
        ranked([1.0, float("nan"), 2.0])


def test_the_curve_starts_at_nothing_and_ends_at_the_whole():
    assert cumulative([2, 0, 1], [1.0, 2.0, 4.0]) == [0, 4, 5, 7]


@pytest.mark.parametrize(
    ("costs", "gains", "expected"),
    [
        ([0, 1, 2, 3, 4], [0, 8, 9, 9.5, 10], 1),
        ([0, 1, 10, 11], [0, 1, 9.9, 10], 2),
        ([0, 1, 2], [0, 1, 2], 2),
        ([0, 1, 2], [0, 0.1, 2], 2),
        ([5], [1], 0),
    ],
)
def test_the_knee_is_farthest_above_the_chord(costs, gains, expected: int):
    assert knee(costs, gains) == expected


@given(st.lists(st.tuples(st.floats(0.01, 10), st.floats(0.01, 10)), min_size=2, max_size=9), st.floats(0.1, 10))
@settings(deadline=None, max_examples=50)
def test_the_knee_does_not_depend_on_units(steps, factor: float):
    order = ranked([gain / cost for cost, gain in steps])
    costs = cumulative(order, [cost for cost, _ in steps])
    gains = cumulative(order, [gain for _, gain in steps])
    found, scaled = knee(costs, gains), knee([cost * factor for cost in costs], gains)
    above = [gain / gains[-1] - cost / costs[-1] for cost, gain in zip(costs, gains, strict=True)]
    assert above[found] == pytest.approx(max(above), abs=1e-9)
    assert above[scaled] == pytest.approx(max(above), abs=1e-9)


def test_a_curve_of_unequal_lengths_is_refused():
    with pytest.raises(ValueError, match="as many costs as gains, got 2 and 1"):
        knee([0, 1], [0])
