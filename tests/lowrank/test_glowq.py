"""The identities of a shared low-rank correction, on shapes of every kind."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from grafts.lowrank.comparators import zeroquant
from grafts.lowrank.covariance import roots, shrink, triangular_roots
from grafts.lowrank.glowq import (
    Correction,
    randomised_svd,
    refit,
    remaining_error,
    solve,
    solve_exactly,
    truncated_svd,
)
from tests.lowrank.problems import CLOSE, Problem, problem, problems

RANKS = st.integers(0, 40)
SEEDS = st.integers(0, 100)


def error_after(task: Problem, correction: Correction) -> float:
    return remaining_error(task.stacked, torch.cat(correction.left), correction.right, task.roots)


def applied(correction: Correction) -> torch.Tensor:
    return torch.cat(correction.left) @ correction.right


@given(problems(), RANKS, st.booleans(), SEEDS)
@settings(deadline=None, max_examples=60)
def test_the_error_drops_by_the_squared_singular_values(task: Problem, rank: int, randomised: bool, seed: int):
    found = solve(task.errors, task.roots, rank, seed=seed, randomised=randomised)
    plain = task.roots.whiten(task.stacked).square().sum().item()
    assert found.total == pytest.approx(plain, rel=1e-10)
    expected = plain - found.singular_values.square().sum().item()
    assert error_after(task, found) == pytest.approx(expected, rel=1e-9, abs=1e-9 * plain)
    assert [len(left) for left in found.left] == [len(error) for error in task.errors]
    if rank:
        assert error_after(task, found) < plain


@given(problems(), RANKS)
@settings(deadline=None, max_examples=40)
def test_qr_first_gives_the_optimum_of_the_whole_decomposition(task: Problem, rank: int):
    fast, reference = (
        solve(task.errors, task.roots, rank, randomised=False),
        solve_exactly(task.errors, task.roots, rank),
    )
    torch.testing.assert_close(fast.singular_values, reference.singular_values, **CLOSE)
    assert error_after(task, fast) == pytest.approx(error_after(task, reference), rel=1e-9, abs=1e-8 * fast.total)


@given(problems(), st.integers(0, 12), SEEDS)
@settings(deadline=None, max_examples=40)
def test_no_correction_of_a_rank_beats_the_exact_one_and_more_rank_is_never_worse(task: Problem, rank: int, seed: int):
    slack = 1e-9 * task.roots.whiten(task.stacked).square().sum().item()
    exact = error_after(task, solve(task.errors, task.roots, rank, randomised=False))
    assert exact <= error_after(task, solve(task.errors, task.roots, rank, seed=seed)) + slack
    assert error_after(task, solve(task.errors, task.roots, rank + 1, randomised=False)) <= exact + slack
    generator = torch.Generator().manual_seed(seed)
    any_left = torch.randn(len(task.stacked), rank, generator=generator, dtype=torch.float64)
    any_right = torch.randn(rank, task.stacked.shape[1], generator=generator, dtype=torch.float64)
    assert exact <= remaining_error(task.stacked, any_left, any_right, task.roots) + slack


@given(problems(), st.booleans())
@settings(deadline=None, max_examples=40)
def test_full_rank_recovers_the_weights(task: Problem, randomised: bool):
    outputs, width = task.stacked.shape
    full = min(outputs, width)
    found = solve(task.errors, task.roots, full + 5, randomised=randomised)
    assert found.right.shape == (full, width), "a rank above the largest is the largest"
    torch.testing.assert_close(applied(found), task.stacked, rtol=1e-7, atol=1e-8)
    torch.testing.assert_close(applied(refit(task.errors, task.roots, found)), task.stacked, rtol=1e-7, atol=1e-8)


@given(problems(), st.integers(0, 12), SEEDS)
@settings(deadline=None, max_examples=60)
def test_refitted_factors_are_never_worse_for_any_module(task: Problem, rank: int, seed: int):
    found = solve(task.errors, task.roots, rank, seed=seed)
    better = refit(task.errors, task.roots, found)
    for error, left in zip(task.errors, better.left, strict=True):
        plain = task.roots.whiten(error).square().sum().item()
        assert remaining_error(error, left, better.right, task.roots) <= plain * (1 + 1e-9)
    assert error_after(task, better) <= error_after(task, found) + 1e-9 * found.total
    drop = better.singular_values.square().sum().item()
    assert error_after(task, better) == pytest.approx(found.total - drop, rel=1e-8, abs=1e-9 * found.total)


def test_plain_slices_can_make_one_module_worse_and_refitting_does_not():
    """Why `refit` exists: with a strong and a weak module, the shared directions serve the strong one."""
    worse = 0
    for seed in range(40):
        task = problem([40, 2], 24, seed)
        task.errors[1].mul_(0.02)
        found = solve(task.errors, task.roots, 4, seed=seed)
        worse += error_after(task, found) > error_after(task, refit(task.errors, task.roots, found))
    assert worse > 20, "a refit that changes nothing would be no use"


@given(problems(max_modules=1), RANKS)
@settings(deadline=None, max_examples=40)
def test_one_module_alone_is_qera_and_no_knowledge_of_inputs_is_zeroquant(task: Problem, rank: int):
    """QERA, theorem 1: A B = (E S)_k S^-1 with S the root of Sigma."""
    error = task.errors[0]
    left, values, right = torch.linalg.svd(error @ task.roots.root, full_matrices=False)
    qera = (left[:, :rank] * values[:rank]) @ right[:rank] @ torch.linalg.inv(task.roots.root)
    torch.testing.assert_close(applied(solve([error], task.roots, rank, randomised=False)), qera, rtol=1e-6, atol=1e-7)
    left, values, right = torch.linalg.svd(error, full_matrices=False)
    plain = (left[:, :rank] * values[:rank]) @ right[:rank]
    found = solve([error], zeroquant(task.covariance, task.magnitude), rank, randomised=False)
    torch.testing.assert_close(applied(found), plain, rtol=1e-6, atol=1e-7)


@given(problems(), RANKS)
@settings(deadline=None, max_examples=40)
def test_any_root_of_the_covariance_gives_the_same_correction(task: Problem, rank: int):
    fast = triangular_roots(task.covariance)
    one, other = (solve(task.errors, each, rank, randomised=False) for each in (task.roots, fast))
    torch.testing.assert_close(one.singular_values, other.singular_values, **CLOSE)
    torch.testing.assert_close(applied(one), applied(other), rtol=1e-5, atol=1e-6)
    pair = [applied(refit(task.errors, each, found)) for each, found in ((task.roots, one), (fast, other))]
    torch.testing.assert_close(pair[0], pair[1], rtol=1e-5, atol=1e-6)


@given(problems(), RANKS, SEEDS)
@settings(deadline=None, max_examples=20)
def test_a_seed_decides_every_bit(task: Problem, rank: int, seed: int):
    first, again = (solve(task.errors, task.roots, rank, seed=seed) for _ in range(2))
    pairs = zip((*first.left, first.right), (*again.left, again.right), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


def test_another_seed_gives_another_sketch():
    task = problem([30, 30], 40, 0)
    first, second = (solve(task.errors, task.roots, 3, seed=seed).right for seed in (0, 1))
    assert not torch.equal(first, second)


@given(st.integers(1, 30), st.integers(1, 30), st.integers(0, 35), SEEDS)
@settings(deadline=None, max_examples=40)
def test_the_sketch_is_the_whole_decomposition_when_it_is_as_wide(rows: int, columns: int, rank: int, seed: int):
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    left, values, right = randomised_svd(matrix, rank, seed=seed, oversampling=30)
    exact_left, exact_values, exact_right = truncated_svd(matrix, rank)
    torch.testing.assert_close(values, exact_values, **CLOSE)
    torch.testing.assert_close((left * values) @ right, (exact_left * exact_values) @ exact_right, rtol=1e-5, atol=1e-6)


def test_a_sketch_of_a_decaying_spectrum_is_close_to_the_optimum():
    task = problem([96, 96, 96], 128, 3)
    exact, sketch = (solve(task.errors, task.roots, 16, randomised=choice) for choice in (False, True))
    assert error_after(task, sketch) <= 1.01 * error_after(task, exact)


def test_stored_factors_that_overflow_are_refused():
    errors = [torch.eye(4, dtype=torch.float64) * 1e4]
    narrow = roots(torch.tensor([1.0, 1e-14, 1e-14, 1e-14], dtype=torch.float64).diag())
    found = solve(errors, narrow, 4, randomised=False)
    with pytest.raises(ValueError, match=r"does not fit torch\.float16: shrink the covariance"):
        found._replace(right=found.right * 1e3).stored(torch.float16)
    half = solve(errors, roots(shrink(narrow.root)), 4).stored(torch.float16)
    assert {factor.dtype for factor in (*half.left, half.right)} == {torch.float16}
