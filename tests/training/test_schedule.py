from __future__ import annotations

import pytest

from stages.training.schedule import LearningRate


def test_warm_up_ends_at_the_peak():
    rate = LearningRate(peak=1.0, num_steps=10, schedule="constant", warmup_fraction=0.4)
    assert [rate.at(step) for step in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


def test_constant_stays():
    rate = LearningRate(peak=3e-4, num_steps=7, schedule="constant", final_fraction=0.1)
    assert {rate.at(step) for step in range(7)} == {3e-4}


def test_linear_falls_to_the_final_fraction():
    rate = LearningRate(peak=2.0, num_steps=5, schedule="linear", final_fraction=0.5)
    assert [rate.at(step) for step in range(5)] == [2.0, 1.75, 1.5, 1.25, 1.0]


def test_cosine_is_halfway_in_the_middle():
    rate = LearningRate(peak=1.0, num_steps=5, schedule="cosine", final_fraction=0.2)
    assert [rate.at(step) for step in range(5)] == pytest.approx([1.0, 0.8828427, 0.6, 0.3171573, 0.2])


def test_wsd_is_stable_then_falls():
    rate = LearningRate(peak=1.0, num_steps=10, schedule="wsd", warmup_fraction=0.2, decay_fraction=0.4)
    expected = [0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 0.75, 0.5, 0.25, 0.0]
    assert [rate.at(step) for step in range(10)] == pytest.approx(expected)


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine", "wsd"])
def test_one_step_trains_at_the_peak_or_the_end(schedule):
    assert LearningRate(peak=1.0, num_steps=1, schedule=schedule, final_fraction=0.5).at(0) in (1.0, 0.5)
