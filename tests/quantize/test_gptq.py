"""GPTQ as a function of one weight and one covariance."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from grafts.lowrank.covariance import output_change
from grafts.quantizers import gptq as module
from grafts.quantizers.gptq import Order, column_order, damped, gptq, inverse_cholesky, naive_gptq
from grafts.rtn import Quantised, code_range, dequantise, quantise
from tests.lowrank.problems import inputs

ORDERS: list[Order] = ["natural", "activation"]


class Case(NamedTuple):
    weight: torch.Tensor
    covariance: torch.Tensor
    bits: int
    group_size: int
    symmetric: bool
    order: Order

    def options(self) -> dict[str, object]:
        return {"symmetric": self.symmetric, "order": self.order}


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Odd shapes, groups that rarely divide, fewer tokens than features, inputs never seen, weights of every scale."""
    rows, columns, tokens = draw(st.integers(1, 6)), draw(st.integers(1, 40)), draw(st.integers(1, 60))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10_000)))
    weight = torch.randn(rows, columns, generator=generator) * 10.0 ** draw(st.integers(-4, 3))
    dtype = draw(st.sampled_from([torch.float32, torch.bfloat16]))
    x_NI = inputs(tokens, columns, generator)
    x_NI[:, torch.rand(columns, generator=generator) < draw(st.sampled_from([0.0, 0.3, 1.0]))] = 0
    sizes, bits = st.sampled_from([1, 5, 8, 16, 64]), st.sampled_from([2, 3, 4, 8])
    order = draw(st.sampled_from(ORDERS))
    covariance = x_NI.T @ x_NI / tokens
    return Case(weight.to(dtype), covariance, draw(bits), draw(sizes), draw(st.booleans()), order)


def same(one: Quantised, other: Quantised) -> bool:
    zeros = (one.zero_point, other.zero_point)
    equal_zeros = zeros == (None, None) or torch.equal(*zeros)
    return torch.equal(one.codes, other.codes) and torch.equal(one.scale, other.scale) and equal_zeros


def moved(case: Case, found: Quantised) -> float:
    """The error of the outputs under the damped covariance."""
    return output_change(case.weight.double() - dequantise(found).double(), damped(case.covariance, 0.01)).item()


@given(cases())
@settings(deadline=None, max_examples=60)
def test_the_fast_path_equals_elimination_from_scratch(case: Case):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "BLOCK_COLUMNS", 7)
        patch.setattr(module, "BLOCK_INVERTED", 5)
        fast = gptq(case.weight, case.covariance, case.bits, case.group_size, **case.options())
    assert same(fast, naive_gptq(case.weight, case.covariance, case.bits, case.group_size, **case.options()))


@given(cases(), st.floats(1e-3, 1e3))
@settings(deadline=None, max_examples=60)
def test_without_correlation_it_is_round_to_nearest(case: Case, variance: float):
    identity = variance * torch.eye(case.weight.shape[1], dtype=torch.float64)
    nearest = quantise(case.weight, case.bits, case.group_size, symmetric=case.symmetric)
    for covariance in (identity, 0 * identity, case.covariance.diagonal().diag()):
        assert same(gptq(case.weight, covariance, case.bits, case.group_size, **case.options()), nearest)


@given(cases())
@settings(deadline=None, max_examples=60)
def test_no_coordinate_of_the_error_exceeds_half_a_step(case: Case):
    """Babai's property: in the basis of U each error is one rounding, except where a code ended its range."""
    found = gptq(case.weight, case.covariance, case.bits, case.group_size, **case.options())
    order = column_order(case.covariance.diagonal(), case.order)
    upper = inverse_cholesky(damped(case.covariance, 0.01)[order[:, None], order])
    error = (case.weight.double() - dequantise(found).double())[:, order]
    roundings = torch.linalg.solve_triangular(upper, error, upper=True, left=False) * upper.diagonal()
    step = found.scale.double().repeat_interleave(case.group_size, 1)[:, : case.weight.shape[1]][:, order]
    inner = (found.codes > code_range(case.bits)[0]) & (found.codes < code_range(case.bits)[1])
    largest = 2.0**case.bits * torch.finfo(case.weight.dtype).eps  # code times scale is rounded to the stored dtype
    slack = 1e-9 * case.weight.double().abs().max()
    assert ((roundings.abs() <= step * (0.5 + 2 * largest) + slack) | ~inner[:, order]).all()
    total = (roundings / upper.diagonal()).square().sum().item()
    assert total == pytest.approx(moved(case, found), rel=1e-6, abs=1e-12), "the roundings are the whole error"


@given(st.integers(2, 40))
@settings(deadline=None, max_examples=20)
def test_the_factor_is_that_of_the_inverse(width: int):
    x_NI = inputs(2 * width, width, torch.Generator().manual_seed(width))
    matrix = damped(x_NI.T @ x_NI, 0.01)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "BLOCK_INVERTED", 7)
        upper = inverse_cholesky(matrix)
    torch.testing.assert_close(upper.T @ upper @ matrix, torch.eye(width, dtype=torch.float64), rtol=0, atol=1e-8)
    assert torch.equal(upper, upper.triu())


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("bits", [3, 4])
def test_outputs_move_less_than_with_round_to_nearest(bits: int, order: Order):
    ratios = []
    for seed in range(8):
        generator = torch.Generator().manual_seed(seed)
        x_NI, weight = inputs(256, 64, generator), torch.randn(16, 64, generator=generator)
        case = Case(weight, x_NI.T @ x_NI / 256, bits, 16, True, order)
        found = gptq(weight, case.covariance, bits, 16, order=order)
        ratios.append(moved(case, found) / moved(case, quantise(weight, bits, 16)))
    assert max(ratios) < 0.8
    assert sum(ratios) / 8 < 0.5


def test_stacked_modules_are_the_modules():
    generator = torch.Generator().manual_seed(5)
    x_NI, weights = inputs(64, 24, generator), [torch.randn(rows, 24, generator=generator) for rows in (3, 8)]
    covariance = x_NI.T @ x_NI / 64
    together = gptq(torch.cat(weights), covariance, 4, 8)
    apart = [gptq(weight, covariance, 4, 8) for weight in weights]
    assert torch.equal(together.codes, torch.cat([found.codes for found in apart]))


def test_strong_inputs_come_first_and_equal_ones_stay_in_order():
    assert column_order(torch.tensor([1.0, 3.0, 1.0, 3.0]), "activation").tolist() == [1, 3, 0, 2]
    assert column_order(torch.tensor([1.0, 3.0]), "natural").tolist() == [0, 1]


def test_the_weight_and_the_covariance_stay_as_they_are():
    weight, covariance = torch.randn(4, 12), torch.eye(12, dtype=torch.float64) + 0.5
    before = weight.clone(), covariance.clone()
    gptq(weight, covariance, 4, 4, symmetric=False)
    assert torch.equal(weight, before[0])
    assert torch.equal(covariance, before[1])
