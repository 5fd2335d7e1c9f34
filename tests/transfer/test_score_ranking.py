"""From effects to scores: the equations written out, and figures with known answers."""

from __future__ import annotations

import pytest
import torch

from stages.transfer.patching import geometric
from stages.transfer.ranking import capability_score, combined, consistency, grouped, mean_gini, overlap, spearman


def test_a_capability_s_score_is_equation_11():
    received = torch.tensor([[[0.5, 0.00, -0.2]], [[0.3, 0.02, -0.4]]], dtype=torch.float64)
    sent = torch.tensor([[[0.1, 0.00, 0.30]], [[0.1, 0.00, -0.1]]], dtype=torch.float64)
    assert consistency([received, sent], 0.01).tolist() == [[1.0, 0.5, 0.5]]
    expected = [[0.4 * 1, 0.01 * 0.5, 0.1 * 0.5]]
    torch.testing.assert_close(capability_score([received, sent], 0.01), torch.tensor(expected, dtype=torch.float64))
    assert capability_score([received], 0.01)[0, 2] == 0, "never above the threshold"


def test_effects_beyond_one_and_below_zero_are_not_clipped():
    received = torch.tensor([[[1.5, -0.5]], [[1.3, 0.1]]], dtype=torch.float64)
    torch.testing.assert_close(capability_score([received], 0.01), torch.tensor([[1.4, -0.1]], dtype=torch.float64))


def test_capabilities_weigh_the_same_whatever_their_scale():
    one = torch.tensor([[0.0, 1.0], [2.0, 4.0]])
    scores = combined(torch.stack([one, 100 * one.flip(1) - 7]))
    torch.testing.assert_close(scores, torch.tensor([[0.125, 0.125], [0.75, 0.75]]))
    assert not combined(torch.full((1, 2, 2), 3.0)).any(), "where all are alike nobody stands out"


def test_groups_are_neighbours():
    found = grouped(torch.tensor([[1.0, 5.0, 2.0, 3.0, 0.0, 4.0]]), num_groups=2)
    assert found["max"].tolist() == [[5.0, 4.0]]
    assert found["sum"].tolist() == [[8.0, 7.0]]
    assert grouped(torch.tensor([[1.0, 5.0]]), num_groups=2)["sum"].tolist() == [[1.0, 5.0]]


def test_gini_knows_even_and_lone():
    assert mean_gini(torch.ones(1, 4)) == pytest.approx(0)
    assert mean_gini(torch.tensor([[0.0, 0.0, 0.0, 3.0]])) == pytest.approx(3 / 4)
    assert mean_gini(torch.tensor([[1.0, 3.0], [0.0, 0.0], [2.0, 2.0]])) == pytest.approx((0.25 + 0) / 2)
    assert mean_gini(torch.zeros(2, 3)) == 0


def test_spearman_is_pearson_of_ranks_that_ties_share():
    assert spearman(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([10.0, 11.0, 99.0])) == pytest.approx(1)
    assert spearman(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([3.0, 2.0, 1.0])) == pytest.approx(-1)
    one, two = torch.tensor([1.0, 2.0, 2.0, 4.0]), torch.tensor([1.0, 3.0, 2.0, 4.0])
    assert spearman(one, two) == pytest.approx(4.5 / (4.5 * 5) ** 0.5)
    assert spearman(torch.ones(3), two[:3]) == 0


def test_overlap_counts_the_best_of_both():
    one = torch.tensor([[9.0, 8.0], [1.0, 2.0]])
    two = torch.tensor([[9.0, 0.0], [1.0, 8.0]])
    assert overlap(one, one, 0.5) == 1
    assert overlap(one, two, 0.5) == pytest.approx(1 / 3)


def test_geometric_weights_sum_to_one_and_fall_by_the_decay():
    weights = geometric(5, 0.9)
    assert weights.sum().item() == pytest.approx(1)
    torch.testing.assert_close(weights[1:] / weights[:-1], torch.full((4,), 0.9, dtype=torch.float64))
