from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from grafts.lowrank.budget import Shape, correction_bytes, rank_of_bytes
from grafts.lowrank.comparators import METHODS, Upgrade, spend_on_bits
from grafts.lowrank.covariance import Roots, roots, shrink
from grafts.lowrank.glowq import remaining_error, solve
from tests.lowrank.problems import CLOSE, Problem, problem, problems, solve_separately


def qera_exact(covariance: torch.Tensor, _magnitude: torch.Tensor) -> Roots:
    """The whole covariance, as GlowQ has it."""
    return roots(covariance)


WEIGHTINGS = {**METHODS, "qera_exact": qera_exact}


def separate_error(task: Problem, method: str, rank: int) -> float:
    weighting = WEIGHTINGS[method](task.covariance, task.magnitude)
    found = solve_separately(task.errors, weighting, rank, randomised=False)
    pairs = zip(task.errors, found, strict=True)
    return sum(remaining_error(error, each.left[0], each.right, task.roots) for error, each in pairs)


@given(problems(), st.integers(0, 9))
@settings(deadline=None, max_examples=40)
def test_knowing_the_whole_covariance_is_never_worse(task: Problem, rank: int):
    exact = separate_error(task, "qera_exact", rank)
    for method in WEIGHTINGS:
        assert exact <= separate_error(task, method, rank) * (1 + 1e-9) + 1e-9


@given(problems(), st.integers(0, 9))
@settings(deadline=None, max_examples=40)
def test_factors_of_their_own_are_never_worse_at_equal_rank(task: Problem, rank: int):
    """The honest form of "no loss of expressivity": sharing B costs something at equal rank, and pays at equal size."""
    shared = solve(task.errors, task.roots, rank, randomised=False)
    shared_error = shared.total - shared.singular_values.square().sum().item()
    assert separate_error(task, "qera_exact", rank) <= shared_error + 1e-9 * shared.total


def test_sharing_costs_at_equal_rank_and_pays_at_equal_size():
    generator = torch.Generator().manual_seed(0)
    # Errors with a common row space, as those of modules calibrated on one input have under its covariance.
    strength = torch.arange(1, 129, dtype=torch.float64).pow(-1.0)
    task = problem([64, 64, 64], 128, 0)
    for error in task.errors:
        error.copy_(torch.randn(64, 128, generator=generator, dtype=torch.float64) * strength)
    task = task._replace(covariance=torch.eye(128, dtype=torch.float64))
    separate, shape = separate_error(task, "qera_exact", 8), Shape((64, 64, 64), 128)
    rank = rank_of_bytes([shape], correction_bytes([shape], 8, shared=False), shared=True)
    assert rank == 14
    shared = {rank: solve(task.errors, task.roots, rank, randomised=False) for rank in (8, rank)}
    left = {rank: found.total - found.singular_values.square().sum().item() for rank, found in shared.items()}
    assert left[14] < separate < left[8]


@given(problems(), st.integers(0, 9))
@settings(deadline=None, max_examples=30)
def test_uncorrelated_inputs_make_the_approximation_exact(task: Problem, rank: int):
    plain = task._replace(covariance=task.covariance.diagonal().diag())
    exact, approximate = (separate_error(plain, method, rank) for method in ("qera_exact", "qera_approx"))
    assert approximate == pytest.approx(exact, rel=1e-8, abs=1e-8)


@given(problems(max_modules=1), st.integers(1, 9), st.floats(1e-3, 1e3))
@settings(deadline=None, max_examples=30)
def test_the_scale_of_the_inputs_does_not_matter(task: Problem, rank: int, scale: float):
    scaled = task._replace(covariance=task.covariance * scale**2, magnitude=task.magnitude * scale)
    for method in WEIGHTINGS.values():
        factors = [
            solve_separately(case.errors, method(case.covariance, case.magnitude), rank, randomised=False)[0]
            for case in (task, scaled)
        ]
        # Where two directions are equally strong, which one is taken is open: compare what is left, not which.
        left = [remaining_error(task.errors[0], found.left[0], found.right, task.roots) for found in factors]
        assert left[0] == pytest.approx(left[1], rel=1e-6, abs=1e-7 * factors[0].total + 1e-9)


def test_inputs_never_seen_do_not_divide_by_zero():
    task = problem([5, 7], 11, 1)
    covariance, magnitude = task.covariance.clone(), task.magnitude.clone()
    covariance[3] = covariance[:, 3] = magnitude[3] = 0
    for method in WEIGHTINGS.values():
        for found in solve_separately(task.errors, method(covariance, magnitude), 4):
            assert torch.isfinite(found.left[0] @ found.right).all()
    zero = torch.zeros_like(covariance)
    for method in WEIGHTINGS.values():
        assert torch.isfinite(method(zero, torch.zeros_like(magnitude)).inverse).all()


def test_factors_hold_as_many_numbers_as_counted():
    task = problem([5, 7, 3], 20, 2)
    shape = Shape((5, 7, 3), 20)
    shared = solve(task.errors, task.roots, 2)
    held = sum(factor.nbytes for factor in (*shared.left, shared.right))
    assert held == correction_bytes([shape], 2, shared=True, value_bytes=8)
    separate = solve_separately(task.errors, task.roots, 2)
    held = sum(found.left[0].nbytes + found.right.nbytes for found in separate)
    assert held == correction_bytes([shape], 2, shared=False, value_bytes=8)
    torch.testing.assert_close(shrink(task.covariance, 0.0), task.covariance, **CLOSE)


def test_bytes_for_more_bits_go_where_a_byte_takes_most():
    upgrades = [Upgrade(6.0, 100), Upgrade(5.0, 50), Upgrade(1.0, 1000), Upgrade(3.0, 60)]
    assert spend_on_bits(upgrades, 0) == []
    assert spend_on_bits(upgrades, 109) == [1]
    assert spend_on_bits(upgrades, 210) == [1, 0, 3]
    assert spend_on_bits(upgrades, 10_000) == [1, 0, 3, 2]
