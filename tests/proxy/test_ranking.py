"""Agreement, the noise of seeds, ties, and the tables that reports make: identities and calibration."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.proxy.agreement import kendall, pairwise_agreement, ranks, spearman, top_k_regret
from stages.proxy.noise import critical_gap, rank_intervals, seed_noise
from stages.proxy.ranking import rank_recipes

losses = st.lists(st.integers(0, 6), min_size=2, max_size=9)


def naive_pairs(a, b):
    pairs = list(itertools.combinations(range(len(a)), 2))
    signs = [(np.sign(a[j] - a[i]), np.sign(b[j] - b[i])) for i, j in pairs]
    agreed = sum(1.0 if x == y != 0 else 0.5 if x * y == 0 else 0.0 for x, y in signs) / len(pairs)
    untied = [sum(abs(pair[side]) for pair in signs) for side in (0, 1)]
    return agreed, sum(x * y for x, y in signs), untied


@given(losses, st.data())
@settings(deadline=None, max_examples=60)
def test_agreement_equals_its_naive_reference(first, data):
    a = np.array(first, float)
    b = np.array(data.draw(st.permutations(first)), float)
    agreed, balance, untied = naive_pairs(a, b)
    assert pairwise_agreement(a, b) == pytest.approx(agreed)
    if min(untied) > 0:
        assert kendall(a, b) == pytest.approx(balance / np.sqrt(untied[0] * untied[1]))
        centred = [np.array([(v[None] < x).sum() + ((v == x).sum() + 1) / 2 for x in v]) for v in (a, b)]
        assert spearman(a, b) == pytest.approx(np.corrcoef(*centred)[0, 1])
        assert spearman(a, a) == pytest.approx(1)
        assert spearman(a, -a) == pytest.approx(-1)
    assert sorted(ranks(a)) == sorted(ranks(b))
    assert ranks(a).sum() == len(a) * (len(a) + 1) / 2


def test_an_order_of_equals_agrees_with_nothing():
    flat, rising = np.zeros(4), np.arange(4.0)
    assert np.isnan(spearman(flat, rising))
    assert np.isnan(kendall(flat, rising))
    assert pairwise_agreement(flat, rising) == 0.5


def test_regret_falls_with_k_and_takes_the_worst_of_equals():
    proxy, target = np.array([1.0, 2.0, 3.0, 4.0]), np.array([0.4, 0.2, 0.1, 0.3])
    found = [top_k_regret(proxy, target, k) for k in (1, 2, 3, 4)]
    assert found == pytest.approx([0.3, 0.1, 0.0, 0.0])
    assert top_k_regret(target, target, 1) == 0
    assert top_k_regret(np.zeros(4), target, 1) == pytest.approx(0.3)


def test_the_noise_of_a_full_table_leaves_out_what_seeds_share():
    recipes, seeds = np.array([1.0, 2.0, 5.0])[:, None], np.array([0.3, -0.1, 0.2, 0.6])[None]
    assert seed_noise(recipes + seeds).deviation == pytest.approx(0, abs=1e-12)
    assert seed_noise(recipes + seeds).freedom == 6
    holes = (recipes + seeds).copy()
    holes[0, 0] = np.nan
    assert seed_noise(holes).deviation > 0.1, "with holes the seeds' share no longer cancels"
    assert seed_noise(holes).freedom == 8


def test_the_noise_is_estimated_without_bias():
    draw = np.random.default_rng(0).standard_normal((4000, 3, 2)) * 0.2
    variances = [seed_noise(table + np.array([[1.0], [2.0], [3.0]])).deviation ** 2 for table in draw]
    assert np.mean(variances) == pytest.approx(0.04, rel=0.05)


def test_recipes_that_are_alike_are_rarely_called_different():
    """Eight equal recipes, two seeds: the chance that any of 28 pairs is called different is 5 %."""
    rng, called = np.random.default_rng(1), 0
    for number in range(60):
        table = 3 + 0.1 * rng.standard_normal((8, 2))
        called += bool(rank_recipes(table, np.full(8, 2), 0.95, 100, number).different.any())
    assert called <= 8


def test_two_seeds_of_one_recipe_are_a_tie_and_a_bad_recipe_is_not():
    rng = np.random.default_rng(2)
    table = 3 + 0.02 * rng.standard_normal((5, 3))
    table[4] += 1
    found = rank_recipes(table, np.full(5, 3), 0.95, 500, 0)
    assert not found.different[:4, :4].any()
    assert found.different[4, :4].all()
    assert found.ranks[4] == found.low[4] == found.high[4] == 5
    assert len(found.best) == 4
    assert found.tied_share == pytest.approx(6 / 10)


def test_one_seed_decides_nothing():
    found = rank_recipes(np.array([[1.0], [2.0], [9.0]]), np.ones(3), 0.95, 100, 0)
    assert found.tied_share == 1
    assert found.best == [0, 1, 2]
    assert found.low.tolist() == [1, 1, 1]
    assert found.high.tolist() == [3, 3, 3]


def test_the_critical_gap_is_tukey_s():
    """Three recipes, ten seeds, full table: the studentised range's 95 % point for 3 groups and 18 degrees is 3.609."""
    noise = seed_noise(np.random.default_rng(3).standard_normal((3, 10)))
    assert noise.freedom == 18
    gap = critical_gap(noise, np.full(3, 10), 0.95, 0)[0, 1]
    assert gap == pytest.approx(3.609 * noise.deviation / np.sqrt(10), rel=0.03)


def test_more_seeds_narrow_the_intervals():
    rng, widths = np.random.default_rng(4), []
    for num_seeds in (2, 12):
        table = np.arange(6)[:, None] * 0.05 + 0.1 * rng.standard_normal((6, num_seeds))
        low, high = rank_intervals(table, seed_noise(table), 0.9, 1000, 0)
        widths.append((high - low).mean())
    assert widths[1] < widths[0]
