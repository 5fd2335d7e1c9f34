from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from grafts.lowrank.comparators import (
    METHODS,
    Shape,
    Upgrade,
    num_values,
    rank_for,
    rank_of_equal_size,
    solve_separately,
    spend_on_bits,
)
from grafts.lowrank.covariance import shrink
from grafts.lowrank.glowq import remaining_error, solve
from tests.lowrank.problems import CLOSE, Problem, problem, problems

SHAPES = st.builds(Shape, st.lists(st.integers(1, 99), min_size=1, max_size=4).map(tuple), st.integers(1, 99))


def separate_error(task: Problem, method: str, rank: int) -> float:
    weighting = METHODS[method](task.covariance, task.magnitude)
    found = solve_separately(task.errors, weighting, rank, randomised=False)
    pairs = zip(task.errors, found, strict=True)
    return sum(remaining_error(error, each.left[0], each.right, task.roots) for error, each in pairs)


@given(problems(), st.integers(0, 9))
@settings(deadline=None, max_examples=40)
def test_knowing_the_whole_covariance_is_never_worse(task: Problem, rank: int):
    exact = separate_error(task, "qera_exact", rank)
    for method in METHODS:
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
    separate, rank = separate_error(task, "qera_exact", 8), rank_of_equal_size(Shape((64, 64, 64), 128), 8)
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
    for method in METHODS.values():
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
    for method in METHODS.values():
        for found in solve_separately(task.errors, method(covariance, magnitude), 4):
            assert torch.isfinite(found.left[0] @ found.right).all()
    zero = torch.zeros_like(covariance)
    for method in METHODS.values():
        assert torch.isfinite(method(zero, torch.zeros_like(magnitude)).inverse).all()


@given(SHAPES, st.integers(0, 100_000), st.booleans())
@settings(deadline=None, max_examples=60)
def test_the_rank_for_a_budget_is_the_largest_that_fits(shape: Shape, budget: int, shared: bool):
    rank, most = rank_for(shape, budget, shared=shared), min(shape.inputs, sum(shape.outputs))
    assert num_values(shape, rank, shared=shared) <= budget
    assert rank == most or num_values(shape, rank + 1, shared=shared) > budget
    assert rank_for(shape, budget + 1, shared=shared) >= rank


@given(SHAPES, st.integers(0, 40))
@settings(deadline=None, max_examples=60)
def test_at_equal_size_the_shared_rank_is_that_of_the_formula(shape: Shape, rank: int):
    """r' = r (sum O + m I) / (sum O + I), rounded down."""
    outputs, modules = sum(shape.outputs), len(shape.outputs)
    formula = rank * (outputs + modules * shape.inputs) // (outputs + shape.inputs)
    assert rank_of_equal_size(shape, rank) == min(formula, shape.inputs, outputs)
    if modules == 1:
        assert rank_of_equal_size(shape, rank) == min(rank, shape.inputs, outputs)


def test_factors_hold_as_many_numbers_as_counted():
    task = problem([5, 7, 3], 20, 2)
    shape = Shape((5, 7, 3), 20)
    shared = solve(task.errors, task.roots, 2)
    assert sum(factor.numel() for factor in (*shared.left, shared.right)) == num_values(shape, 2, shared=True)
    separate = solve_separately(task.errors, task.roots, 2)
    held = sum(found.left[0].numel() + found.right.numel() for found in separate)
    assert held == num_values(shape, 2, shared=False)
    torch.testing.assert_close(shrink(task.covariance, 0.0), task.covariance, **CLOSE)


def test_bytes_for_more_bits_go_where_a_byte_takes_most():
    upgrades = [Upgrade(6.0, 100), Upgrade(5.0, 50), Upgrade(1.0, 1000), Upgrade(3.0, 60)]
    assert spend_on_bits(upgrades, 0) == []
    assert spend_on_bits(upgrades, 109) == [1]
    assert spend_on_bits(upgrades, 210) == [1, 0, 3]
    assert spend_on_bits(upgrades, 10_000) == [1, 0, 3, 2]
