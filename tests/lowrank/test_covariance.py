from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from grafts.lowrank import covariance
from grafts.lowrank.covariance import (
    Moments,
    diagonal_roots,
    output_change,
    roots,
    shrink,
    shrunk_change,
    triangular_roots,
)
from tests.lowrank.problems import CLOSE, inputs

SEEDS = st.integers(0, 10_000)


@given(st.integers(1, 33), st.integers(1, 70), SEEDS, st.sampled_from([torch.float32, torch.bfloat16]))
@settings(deadline=None, max_examples=40)
def test_moments_in_pieces_are_the_moments_of_the_whole(width: int, tokens: int, seed: int, dtype: torch.dtype):
    x_NI = inputs(tokens, width, torch.Generator().manual_seed(seed)).to(dtype)
    moments = Moments(width)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(covariance, "CHUNK_TOKENS", 7)
        patch.setattr(covariance, "CHUNK_FEATURES", 5)
        for piece in x_NI.split(11):
            moments.add(piece[None])
    wide_NI = x_NI.double()
    expected = wide_NI.T @ wide_NI / tokens
    torch.testing.assert_close(moments.covariance(), expected, rtol=1e-5, atol=1e-5 * expected.abs().max().item())
    torch.testing.assert_close(moments.mean_magnitude(), wide_NI.abs().mean(0), rtol=1e-6, atol=1e-6)
    assert torch.equal(moments.covariance(), moments.covariance().T)
    assert moments.num_tokens == tokens


def test_sums_do_not_lose_small_inputs_after_many_large_ones():
    moments = Moments(1)
    moments.add(torch.full((1, 1), 2.0**14))
    for _ in range(64):
        moments.add(torch.full((1, 1), 1.0))  # 2**28 + 1 is no float32
    assert moments.covariance().item() * 65 == 2.0**28 + 64


def test_no_tokens_have_no_moments():
    with pytest.raises(ValueError, match="no token was counted"):
        Moments(3).covariance()


@given(st.integers(1, 20), st.integers(1, 40), SEEDS)
@settings(deadline=None, max_examples=40)
def test_roots_are_roots_and_inverse_to_each_other(width: int, tokens: int, seed: int):
    x_NI = inputs(tokens, width, torch.Generator().manual_seed(seed))
    sigma = shrink(x_NI.T @ x_NI / tokens)
    found = roots(sigma)
    torch.testing.assert_close(found.root @ found.root, sigma, **CLOSE)
    torch.testing.assert_close(found.root @ found.inverse, torch.eye(width, dtype=torch.float64), **CLOSE)
    diagonal, whole = diagonal_roots(sigma.diagonal()), roots(sigma.diagonal().diag())
    torch.testing.assert_close(diagonal.root.diag(), whole.root, **CLOSE)
    torch.testing.assert_close(diagonal.inverse.diag(), whole.inverse, **CLOSE)


@given(st.integers(1, 20), st.integers(1, 40), SEEDS)
@settings(deadline=None, max_examples=40)
def test_triangular_roots_are_roots(width: int, tokens: int, seed: int):
    x_NI = inputs(tokens, width, torch.Generator().manual_seed(seed))
    sigma = shrink(x_NI.T @ x_NI / tokens)
    found = triangular_roots(sigma)
    torch.testing.assert_close(found.root @ found.root.T, sigma, **CLOSE)
    torch.testing.assert_close(found.unwhiten(found.root), torch.eye(width, dtype=torch.float64), **CLOSE)


@given(st.integers(1, 20), st.integers(1, 9), st.integers(1, 25), SEEDS)
@settings(deadline=None, max_examples=40)
def test_whitening_in_blocks_is_whitening(width: int, rows: int, block: int, seed: int):
    generator = torch.Generator().manual_seed(seed)
    x_NI, matrix_OI = inputs(13, width, generator), torch.randn(rows, width, generator=generator, dtype=torch.float64)
    found = triangular_roots(shrink(x_NI.T @ x_NI / 13))
    expected = matrix_OI @ found.root
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(covariance, "CHUNK_FEATURES", block)
        torch.testing.assert_close(found.whiten(matrix_OI), expected, **CLOSE)
        power = found.power(matrix_OI)
    assert power == pytest.approx(expected.square().sum().item(), rel=1e-5)


def test_a_covariance_without_variance_in_some_direction_has_no_triangular_root():
    with pytest.raises(ValueError, match="shrink it first"):
        triangular_roots(torch.zeros(3, 3))


@given(st.integers(1, 20), st.floats(0, 1), SEEDS)
@settings(deadline=None, max_examples=30)
def test_shrinking_keeps_the_mean_variance(width: int, share: float, seed: int):
    x_NI = inputs(2, width, torch.Generator().manual_seed(seed))
    sigma = x_NI.T @ x_NI / 2
    torch.testing.assert_close(shrink(sigma, share).trace(), sigma.trace())
    least = torch.linalg.eigvalsh(shrink(sigma, share)).min()
    assert least >= share * sigma.trace() / width * (1 - 1e-9) - 1e-12 * sigma.trace()


@given(st.integers(1, 12), st.integers(0, 9), st.floats(0, 1), SEEDS)
@settings(deadline=None, max_examples=30)
def test_what_outputs_change_by_a_shrunk_covariance_follows_from_the_change_itself(
    width: int, tokens: int, share: float, seed: int
):
    generator = torch.Generator().manual_seed(seed)
    x_NI, matrix_OI = inputs(tokens, width, generator), torch.randn(5, width, generator=generator)
    sigma = x_NI.T @ x_NI / 9
    found = shrunk_change(
        output_change(matrix_OI.double(), sigma).item(), matrix_OI, sigma.diagonal().mean().item(), share
    )
    expected = output_change(matrix_OI.double(), shrink(sigma, share)).item()
    assert found == pytest.approx(expected, rel=1e-5)


def test_inputs_that_are_zero_count_as_all_alike():
    zero = torch.zeros(4, 4, dtype=torch.float64)
    assert torch.equal(shrink(zero), torch.eye(4, dtype=torch.float64))
    assert torch.equal(roots(zero).root, torch.eye(4, dtype=torch.float64))
    assert torch.equal(diagonal_roots(torch.zeros(4)).inverse, torch.ones(4, dtype=torch.float64))


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 10), SEEDS)
@settings(deadline=None, max_examples=40)
def test_the_change_of_outputs_is_what_the_inputs_show(rows: int, width: int, block: int, seed: int):
    generator = torch.Generator().manual_seed(seed)
    x_NI, change = inputs(13, width, generator), torch.randn(rows, width, generator=generator, dtype=torch.float64)
    expected = (x_NI @ change.T).square().sum(1).mean()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(covariance, "CHUNK_FEATURES", block)
        torch.testing.assert_close(output_change(change, x_NI.T @ x_NI / 13), expected)
    torch.testing.assert_close(roots(x_NI.T @ x_NI / 13).whiten(change).square().sum(), expected, rtol=1e-6, atol=0)
