"""GPTQ: round a weight column by column, each rounding error answered by the columns that are still free.

arXiv 2210.17323. With H the inputs' second moment, the error tr(D H D^T) of the outputs is kept small by moving the
remaining columns along the rows of U, where U^T U = H^-1. It is Babai's nearest plane on the lattice of the codes: in
the basis of U no coordinate of the error exceeds half a step, unless a code reached the end of its range.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, Literal

import torch
from torch import Tensor

from grafts.rtn import Bits, Grid, Quantised, find_grid, grid_values, nearest_codes

Order = Literal["natural", "activation"]
"""`natural`: from left to right, each group's grid found on the weights as they then are. `activation`: strongest input
first, on grids of the weights as they were ("static groups"), so that groups stay runs of neighbouring features."""

BLOCK_COLUMNS: Final = 128
"""Columns between two updates of everything to their right."""
BLOCK_INVERTED: Final = 512
"""Columns of a triangular inverse that are solved for at once."""


def gptq(
    weight_OI: Tensor,
    covariance_II: Tensor,
    bits: Bits,
    group_size: int,
    *,
    symmetric: bool = True,
    damping: float = 0.01,
    order: Order = "natural",
) -> Quantised:
    """Codes for `weight_OI` that keep tr(D H D^T) small, H being `covariance_II` of its inputs, damped.

    `damping` is the share of the mean variance that is added to every input's. Computes in the covariance's dtype,
    which should be float64. Rows do not influence each other: modules that read one input may be stacked.
    """
    order_I = column_order(covariance_II.diagonal(), order)
    upper_II = inverse_cholesky(damped(covariance_II, damping)[order_I[:, None], order_I])
    work_IO = weight_OI.T.to(upper_II.dtype)[order_I]
    grid = find_grid(weight_OI, bits, group_size, weight_OI.dtype, symmetric=symmetric)
    codes_IO = torch.empty(work_IO.shape, dtype=torch.int8, device=weight_OI.device)
    for start, stop in _blocks(len(order_I), group_size if order == "natural" else None):
        if order == "natural" and start % group_size == 0:
            group_IO = work_IO[start : start + group_size]
            found = find_grid(group_IO.T, bits, group_size, weight_OI.dtype, symmetric=symmetric)
            _set_group(grid, start // group_size, found)
        errors_BO = torch.empty_like(work_IO[start:stop])
        for column in range(start, stop):
            place = _group(grid, int(order_I[column]) // group_size)
            codes_IO[column] = nearest_codes(work_IO[column], place, bits)
            moved_O = work_IO[column] - grid_values(codes_IO[column], place)
            errors_BO[column - start] = moved_O / upper_II[column, column]
            work_IO[column + 1 : stop].addr_(upper_II[column, column + 1 : stop], errors_BO[column - start], alpha=-1)
        work_IO[stop:].addmm_(upper_II[start:stop, stop:].T, errors_BO, alpha=-1)
    return Quantised(codes_IO[order_I.argsort()].T.contiguous(), *grid, group_size)


def damped(covariance_II: Tensor, damping: float) -> Tensor:
    """H plus `damping` times its mean variance on the diagonal; the identity where H is zero."""
    mean_variance = covariance_II.diagonal().mean()
    identity_II = torch.eye(covariance_II.shape[0], dtype=covariance_II.dtype, device=covariance_II.device)
    return identity_II if mean_variance == 0 else covariance_II + damping * mean_variance * identity_II


def inverse_cholesky(matrix_II: Tensor) -> Tensor:
    """The upper U with U^T U = matrix^-1, without forming the inverse.

    With rows and columns reversed, matrix = R R^T for an upper R, and U = R^-1, solved for without its zeros.
    """
    upper_II = torch.linalg.cholesky(matrix_II.flip(0, 1)).flip(0, 1)
    inverse_II = torch.eye(upper_II.shape[0], dtype=upper_II.dtype, device=upper_II.device)
    for start in range(0, len(upper_II), BLOCK_INVERTED):
        stop = start + BLOCK_INVERTED
        columns_IB = inverse_II[:stop, start:stop]
        inverse_II[:stop, start:stop] = torch.linalg.solve_triangular(upper_II[:stop, :stop], columns_IB, upper=True)
    return inverse_II


def column_order(variance_I: Tensor, order: Order) -> Tensor:
    """In which order columns are rounded; columns of equal variance stay in theirs."""
    if order == "activation":
        return variance_I.argsort(descending=True, stable=True)
    return torch.arange(len(variance_I), device=variance_I.device)


def naive_gptq(
    weight_OI: Tensor,
    covariance_II: Tensor,
    bits: Bits,
    group_size: int,
    *,
    symmetric: bool = True,
    damping: float = 0.01,
    order: Order = "natural",
) -> Quantised:
    """Reference for `gptq`: after each column, the inverse of what is left of H, from scratch."""
    order_I, hessian_II = column_order(covariance_II.diagonal(), order), damped(covariance_II, damping)
    work_OI, codes_OI = weight_OI.to(hessian_II.dtype), torch.empty(weight_OI.shape, dtype=torch.int8)
    grid = find_grid(weight_OI, bits, group_size, weight_OI.dtype, symmetric=symmetric)
    for step, column in enumerate(order_I.tolist()):
        left = order_I[step:]
        group, first = column // group_size, column % group_size == 0
        if order == "natural" and first:
            columns_OS = work_OI[:, column : column + group_size]
            _set_group(grid, group, find_grid(columns_OS, bits, group_size, weight_OI.dtype, symmetric=symmetric))
        codes_OI[:, column] = nearest_codes(work_OI[:, column], _group(grid, group), bits)
        inverse = torch.linalg.inv(hessian_II[left[:, None], left])
        error_O = (work_OI[:, column] - grid_values(codes_OI[:, column], _group(grid, group))) / inverse[0, 0]
        work_OI[:, left] -= error_O[:, None] * inverse[0]
    return Quantised(codes_OI, *grid, group_size)


def _blocks(num_columns: int, group_size: int | None) -> Iterator[tuple[int, int]]:
    """Runs of columns, no run crossing a group: a group's grid needs all updates from the left."""
    for first in range(0, num_columns, group_size or num_columns):
        last = min(first + (group_size or num_columns), num_columns)
        for start in range(first, last, BLOCK_COLUMNS):
            yield start, min(start + BLOCK_COLUMNS, last)


def _group(grid: Grid, group: int) -> Grid:
    return Grid(grid.scale[:, group], None if grid.zero_point is None else grid.zero_point[:, group])


def _set_group(grid: Grid, group: int, found: Grid) -> None:
    grid.scale[:, group] = found.scale[:, 0]
    if grid.zero_point is not None and found.zero_point is not None:
        grid.zero_point[:, group] = found.zero_point[:, 0]
