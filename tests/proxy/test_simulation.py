"""The random-feature model: small rates order recipes as their optimum does, large and tiny ones do not."""

from __future__ import annotations

import numpy as np
import pytest

from stages.proxy.agreement import spearman
from stages.proxy.movement import Movement, refusal
from stages.proxy.rank import RankParameters
from stages.proxy.table import read_tables
from tests.proxy.runs import reports, trained
from tests.proxy.simulation import World, optimal, train

STANDARD, REDUCED, TINY = 1.0, 0.1, 0.001
WORLDS = 3
LIMITS = RankParameters()


@pytest.fixture(scope="module")
def worlds():
    """Losses [R] at each rate, before and after, and at the optimum, of several worlds."""
    found = []
    for number in range(WORLDS):
        world = World.of(12, number)
        losses = {rate: train(world, rate, width=64, seeds=range(1)) for rate in (STANDARD, REDUCED, TINY)}
        found.append((losses, optimal(world)))
    return found


def mean_correlation(worlds, rate: float) -> float:
    return float(np.mean([spearman(losses[rate][1].mean(1), best) for losses, best in worlds]))


def test_the_reduced_rate_orders_recipes_as_their_optimum_does(worlds):
    reduced, standard, tiny = (mean_correlation(worlds, rate) for rate in (REDUCED, STANDARD, TINY))
    assert reduced > 0.9
    assert standard < 0.75
    assert tiny < 0.75, "an inverted U: too small a rate fails as well"


def test_in_every_world_the_reduced_rate_is_at_least_as_good(worlds):
    for losses, best in worlds:
        assert spearman(losses[REDUCED][1][:, 0], best) >= spearman(losses[STANDARD][1][:, 0], best)


def test_the_tiny_rate_is_refused_and_the_reduced_one_ranked(worlds, tmp_path):
    losses, _ = worlds[0]
    proxies = [
        trained(f"recipe {number}", float(final), initial=float(initial), learning_rate=rate)
        for rate, (before, after) in losses.items()
        for number, (initial, final) in enumerate(zip(before[:, 0], after[:, 0], strict=True))
    ]
    tables = read_tables(reports(tmp_path, proxies))
    refused = {
        table.first.learning_rate: refusal(table, Movement.of(table, tables), LIMITS.least_fall, LIMITS.least_share)
        for table in tables
    }
    assert refused[REDUCED] == refused[STANDARD] == ""
    assert "barely moved" in refused[TINY]
