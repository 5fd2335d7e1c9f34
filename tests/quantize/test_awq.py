"""AWQ's scaling as a function of one weight and its inputs' moments."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from grafts.lowrank.covariance import Moments, output_change
from grafts.quantizers.awq import naive_errors, scaled_rounding, scaling_factors, search_scaling
from grafts.rtn import dequantise, quantise
from tests.lowrank.problems import inputs

BITS = st.sampled_from([2, 3, 4, 8])
SIZES = st.sampled_from([1, 5, 8, 64])
SEEDS = st.integers(0, 10_000)


@st.composite
def layers(draw: st.DrawFn) -> tuple[torch.Tensor, torch.Tensor]:
    """A weight and its inputs, some of which are never seen; float32."""
    columns, generator = draw(st.integers(1, 33)), torch.Generator().manual_seed(draw(SEEDS))
    x_NI = inputs(draw(st.integers(1, 40)), columns, generator).float()
    x_NI[:, torch.rand(columns, generator=generator) < draw(st.sampled_from([0.0, 0.3, 1.0]))] = 0
    return torch.randn(draw(st.integers(1, 6)), columns, generator=generator), x_NI


def moments(x_NI: torch.Tensor) -> Moments:
    found = Moments(x_NI.shape[1])
    found.add(x_NI)
    return found


@given(layers(), BITS, SIZES, st.booleans())
@settings(deadline=None, max_examples=60)
def test_errors_from_moments_are_those_of_the_inputs_themselves(layer, bits: int, size: int, symmetric: bool):
    weight, x_NI = layer
    seen = moments(x_NI)
    found = search_scaling(
        weight, seen.covariance(), seen.mean_magnitude(), bits, size, symmetric=symmetric, num_exponents=5
    )
    naive = naive_errors(weight, x_NI, seen.mean_magnitude(), bits, size, symmetric=symmetric, num_exponents=5)
    outputs = (x_NI @ weight.T).square().sum(1).mean().item()
    torch.testing.assert_close(found.errors, naive, rtol=1e-2, atol=1e-5 * outputs + 1e-30)
    assert found.exponent == [0.0, 0.2, 0.4, 0.6, 0.8][int(found.errors.argmin())]


@given(layers(), BITS, SIZES, st.booleans())
@settings(deadline=None, max_examples=60)
def test_exponent_nought_is_round_to_nearest_to_the_bit(layer, bits: int, size: int, symmetric: bool):
    weight, x_NI = layer
    seen = moments(x_NI)
    factors = scaling_factors(seen.mean_magnitude(), 0.0)
    nearest = dequantise(quantise(weight, bits, size, symmetric=symmetric))
    assert torch.equal(scaled_rounding(weight, factors, bits, size, symmetric=symmetric), nearest)
    found = search_scaling(
        weight, seen.covariance(), seen.mean_magnitude(), bits, size, symmetric=symmetric, num_exponents=1
    )
    assert found.exponent == 0
    assert torch.equal(found.factors, torch.ones(weight.shape[1]))


@given(layers(), BITS, SIZES, st.booleans())
@settings(deadline=None, max_examples=60)
def test_outputs_never_move_further_than_with_round_to_nearest(layer, bits: int, size: int, symmetric: bool):
    weight, x_NI = layer
    seen = moments(x_NI)
    sigma = seen.covariance().float()
    found = search_scaling(weight, sigma, seen.mean_magnitude(), bits, size, symmetric=symmetric)
    scaled = scaled_rounding(weight, found.factors, bits, size, symmetric=symmetric)
    nearest = dequantise(quantise(weight, bits, size, symmetric=symmetric))
    assert output_change(weight - scaled, sigma) <= output_change(weight - nearest, sigma)


@given(st.integers(1, 40), st.floats(0, 1), SEEDS)
@settings(deadline=None, max_examples=40)
def test_factors_are_balanced_and_follow_the_inputs(width: int, exponent: float, seed: int):
    magnitude = torch.rand(width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 1e-3
    factors = scaling_factors(magnitude, exponent)
    assert (factors.max() * factors.min()).item() == pytest.approx(1, rel=1e-5)
    order = magnitude.argsort()
    assert (factors[order].diff() >= 0).all()
    torch.testing.assert_close(scaling_factors(magnitude * 100, exponent), factors)


def test_inputs_never_seen_have_finite_factors():
    factors = scaling_factors(torch.tensor([0.0, 1.0, 2.0]), 0.95)
    assert torch.isfinite(factors).all()
    assert (factors > 0).all()
    assert torch.equal(scaling_factors(torch.zeros(3), 0.5), torch.ones(3))


def test_a_few_strong_inputs_are_protected():
    generator = torch.Generator().manual_seed(1)
    x_NI = torch.randn(256, 64, generator=generator)
    x_NI[:, :2] *= 30
    seen, weight = moments(x_NI), torch.randn(32, 64, generator=generator)
    found = search_scaling(weight, seen.covariance(), seen.mean_magnitude(), 4, 64)
    assert found.exponent > 0
    assert found.errors.min() < 0.7 * found.errors[0]
