"""The strategies as pure functions: exact counts, nesting, a head in every layer, ties, the logged HALO sweep."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.transfer.halo import CAP, halo_scores
from stages.transfer.selection import (
    Choice,
    count_of,
    fixed,
    global_best,
    global_random,
    groups_kept,
    heads_of,
    layer_best,
    layer_random,
    quotas,
    whole_layers,
)

# Retrieval and common-sense averages, in per cent, of Qwen3-1.7B with one layer converted: the per-layer logs that HALO
# published (github.com/thunlp/hybrid-linear-attention at 229e301, attn-layer-selection/results/layer_sweep_hypenet-2b).
# Retrieval is the mean of FDA, SWDE and RULER's SQuAD at 4096 tokens, common sense that of acc_norm on ARC-C, ARC-E and
# HellaSwag. Its released model hypenet-2b.json keeps the layers below as full attention.
SWEEP = (
    (63.39, 31.08), (72.02, 55.48), (69.37, 58.04), (71.44, 58.39), (70.97, 57.56), (74.32, 57.99), (68.62, 57.84),
    (71.00, 57.53), (72.58, 58.28), (69.35, 58.02), (72.49, 57.22), (68.83, 57.27), (69.36, 57.68), (72.58, 57.82),
    (71.82, 57.84), (73.14, 57.94), (70.17, 57.91), (70.53, 57.25), (70.87, 57.57), (68.47, 57.76), (71.88, 57.08),
    (65.31, 57.68), (72.74, 57.09), (70.64, 57.75), (69.36, 57.76), (67.05, 57.69), (70.08, 57.79), (72.16, 57.94),
)  # fmt: skip
RELEASED = [2, 3, 6, 8, 9, 21, 25]

maps = st.integers(1, 6).flatmap(
    lambda width: st.lists(
        st.lists(st.integers(0, 9).map(lambda tenths: tenths / 10), min_size=width, max_size=width),
        min_size=1,
        max_size=6,
    )
)


def flat(choice: Choice) -> set[tuple[int, int]]:
    return {(layer, unit) for layer, of_layer in enumerate(choice) for unit in of_layer}


def sizes(choice: Choice) -> list[int]:
    return [len(of_layer) for of_layer in choice]


@given(scores=maps, data=st.data())
def test_every_strategy_keeps_the_exact_number(scores, data):
    num_layers, num_units = len(scores), len(scores[0])
    count = data.draw(st.integers(num_layers, num_layers * num_units))
    rng = random.Random(data.draw(st.integers(0, 5)))
    for choice in (
        fixed(num_layers, count),
        layer_random(num_layers, num_units, count, rng),
        layer_best(scores, count),
        global_random(num_layers, num_units, count, rng),
        global_best(scores, count),
        global_best(scores, count, least=1),
    ):
        assert len(choice) == num_layers
        assert sum(sizes(choice)) == len(flat(choice)) == count
        assert all(of_layer == sorted(of_layer) for of_layer in choice)
        assert all(0 <= unit < num_units for _, unit in flat(choice))


@given(scores=maps, data=st.data())
def test_fewer_heads_are_among_the_more(scores, data):
    total = len(scores) * len(scores[0])
    more = data.draw(st.integers(1, total))
    fewer = data.draw(st.integers(1, more))
    assert flat(global_best(scores, fewer)) <= flat(global_best(scores, more))


@given(scores=maps, data=st.data())
def test_unchosen_heads_are_never_better(scores, data):
    count = data.draw(st.integers(len(scores), len(scores) * len(scores[0])))
    everything = {(layer, unit) for layer in range(len(scores)) for unit in range(len(scores[0]))}

    def value(place: tuple[int, int]) -> float:
        return scores[place[0]][place[1]]

    chosen = flat(global_best(scores, count))
    assert min(map(value, chosen)) >= max(map(value, everything - chosen), default=0)
    constrained = global_best(scores, count, least=1)
    assert min(sizes(constrained)) >= 1
    assert all(
        max(of_layer) in [of_layer[unit] for unit in units] for of_layer, units in zip(scores, constrained, strict=True)
    )
    for of_layer, units in zip(scores, layer_best(scores, count), strict=True):
        left = [score for unit, score in enumerate(of_layer) if unit not in units]
        assert min(of_layer[unit] for unit in units) >= max(left, default=0)


def test_the_constraint_costs_the_worst_of_the_rest():
    scores = [[0.9, 0.8, 0.7], [0.1, 0.0, 0.2]]
    assert global_best(scores, 3) == [[0, 1, 2], []]
    assert global_best(scores, 3, least=1) == [[0, 1], [2]]
    assert global_best(scores, 2, least=1) == [[0], [2]]


def test_ties_go_by_layer_then_head():
    assert global_best([[0.5, 0.5], [0.5, 0.7]], 2) == [[0], [1]]
    assert global_best([[0.5, 0.5], [0.5, 0.5]], 3, least=1) == [[0, 1], [0]]
    assert layer_best([[0.1, 0.1], [0.1, 0.1]], 2) == [[0], [0]]


def test_layers_get_as_many_where_it_divides_and_else_take_turns():
    assert quotas(4, 8) == [2, 2, 2, 2]
    assert quotas(4, 6) == [1, 2, 1, 2]
    assert sizes(fixed(28, 56)) == [2] * 28
    assert fixed(2, 3) == [[0], [0, 1]]


def test_drawing_is_a_function_of_the_seed():
    one, same, other = (global_random(10, 8, 20, random.Random(seed)) for seed in (0, 0, 1))
    assert one == same != other
    one, same, other = (layer_random(10, 8, 20, random.Random(seed)) for seed in (0, 0, 1))
    assert one == same != other
    assert sizes(one) == [2] * 10


@pytest.mark.parametrize(
    ("ratio", "units", "count"),
    [(0.25, 448, 112), (0.125, 448, 56), (0.25, 270, 68), (0.1, 25, 3), (0.07, 50, 4), (1, 9, 9)],
)
def test_a_ratio_is_rounded_halves_up(ratio: float, units: int, count: int):
    assert count_of(ratio, units) == count


def test_groups_are_kept_for_one_head_of_them():
    assert heads_of([[0, 2], []], 3) == [[0, 1, 2, 6, 7, 8], []]
    assert groups_kept([[0, 1, 2], [0, 4, 8], []], 3) == 1 + 3
    assert groups_kept([[0], [7]], 1) == 2


def test_whole_layers_are_the_best():
    assert whole_layers([0.1, 0.9, 0.5, 0.9], 2, 2) == [[], [0, 1], [], [0, 1]]
    assert whole_layers([1.0, 1.0], 3, 1) == [[0, 1, 2], []]


def test_the_published_sweep_gives_the_released_layers():
    scores = halo_scores(*zip(*SWEEP, strict=True))
    kept = [layer for layer, units in enumerate(whole_layers(scores, 16, 7)) if units]
    assert kept == RELEASED
    assert [layer for layer, score in enumerate(scores) if score == CAP] == [3], (
        "the layer that is best by common sense"
    )
    worst = min(range(28), key=lambda layer: SWEEP[layer][1])
    assert worst == 0
    assert worst not in kept, "converting it alone destroys common sense, which the score ignores"


def test_halo_prefers_what_loses_retrieval_and_not_common_sense():
    low, high = halo_scores([70.0, 60.0, 72.0], [58.0, 58.0, 60.0])[:2]
    assert (low, high) == (pytest.approx(1), pytest.approx(6))
