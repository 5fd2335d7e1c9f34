"""GlowQ: one low-rank correction for all modules that read the same input, with a shared right factor.

arXiv 2603.25385. For the stacked errors E [O, I] of a group and the second moment Sigma of its input, A [O, R] and
B [R, I] minimise ||(E - A B) Sigma^{1/2}||_F. With E = Q R_E by QR, that is the singular value decomposition of the
small M = R_E Sigma^{1/2}. For a group of one it is QERA's exact solution (arXiv 2410.06040).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

import torch
from torch import Tensor

from grafts.lowrank.covariance import Roots

OVERSAMPLING: Final = 10
POWER_ITERATIONS: Final = 2


class Correction(NamedTuple):
    """Factors for one group of modules, float64 until `stored`. R is the rank asked for, or the largest there is."""

    left: tuple[Tensor, ...]
    """A_i [O_i, R] of each module, in the order of the errors given"""
    right: Tensor
    """B [R, I], shared"""
    singular_values: Tensor
    """[R] of the whitened error, falling: their squares are what each rank takes from `total`"""
    total: float
    """||E Sigma^{1/2}||_F^2: the error without correction"""

    def stored(self, dtype: torch.dtype) -> Correction:
        """The factors in `dtype`. Raises ValueError when a value does not fit: raise the covariance's shrinkage."""
        factors = [factor.to(dtype).contiguous() for factor in (*self.left, self.right)]
        if not all(bool(torch.isfinite(factor).all()) for factor in factors):
            largest = max(float(factor.abs().max()) for factor in (*self.left, self.right) if factor.numel())
            raise ValueError(f"a factor as large as {largest:.3g} does not fit {dtype}: shrink the covariance more")
        return self._replace(left=tuple(factors[:-1]), right=factors[-1])


def solve(errors: Sequence[Tensor], roots: Roots, rank: int, *, seed: int = 0, randomised: bool = True) -> Correction:
    """The correction of rank `rank` for the `errors` [O_i, I] of the modules that read one input.

    The error drops by exactly the sum of the squared singular values, for a randomised decomposition too: its core is
    the exact projection of M. `randomised` trades a little of the optimum for time; it is a function of `seed`.
    """
    stacked_OI = torch.cat([error.double() for error in errors])
    # A sketch is cheaper than the decomposition that would shrink what is sketched, and wide errors do not shrink.
    shrinks = not randomised and len(stacked_OI) > stacked_OI.shape[1]
    basis_OK, core_KI = torch.linalg.qr(stacked_OI) if shrinks else (None, stacked_OI)
    whitened_KI = roots.whiten(core_KI)
    rank = min(rank, *whitened_KI.shape)
    if randomised:
        left_KR, values_R, right_RI = randomised_svd(whitened_KI, rank, seed=seed)
    else:
        left_KR, values_R, right_RI = truncated_svd(whitened_KI, rank)
    strength_R = values_R.sqrt()
    left_OR, right_RI = left_KR * strength_R, roots.unwhiten(strength_R[:, None] * right_RI)
    left_OR = left_OR if basis_OK is None else basis_OK @ left_OR
    return _correction(left_OR, right_RI, values_R, whitened_KI, errors)


def solve_exactly(errors: Sequence[Tensor], roots: Roots, rank: int) -> Correction:
    """Reference for `solve`: the whole singular value decomposition of E Sigma^{1/2}."""
    whitened_OI = roots.whiten(torch.cat([error.double() for error in errors]))
    left_OR, values_R, right_RI = truncated_svd(whitened_OI, rank)
    strength_R = values_R.sqrt()
    right_RI = roots.unwhiten(strength_R[:, None] * right_RI)
    return _correction(left_OR * strength_R, right_RI, values_R, whitened_OI, errors)


def refit(errors: Sequence[Tensor], roots: Roots, correction: Correction) -> Correction:
    """The best left factor of every module for the directions that `correction` has chosen: never worse for any.

    A_i = E_i Sigma^{1/2} V and B = V^T Sigma^{-1/2} with orthonormal V make each module's correction an orthogonal
    projection of its whitened error; the shared slices of `solve` are that for the group alone.
    """
    # B Sigma^{1/2} spans the directions. Where B was cut at a rank that no error has, fewer of them are left.
    directions_IR = torch.linalg.qr(roots.whiten(correction.right).T).Q
    left = tuple(roots.whiten(error) @ directions_IR for error in errors)
    values_R = torch.stack([factor_OR.square().sum(0) for factor_OR in left]).sum(0).sqrt()
    return correction._replace(left=left, right=roots.unwhiten(directions_IR.T), singular_values=values_R)


def remaining_error(error_OI: Tensor, left_OR: Tensor, right_RI: Tensor, roots: Roots) -> float:
    """||(E - A B) Sigma^{1/2}||_F^2 of one module, or of a stack of them."""
    return roots.whiten(error_OI.double() - left_OR @ right_RI).square().sum().item()


def truncated_svd(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """The `rank` largest singular triples, exactly."""
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    return left[:, :rank], values[:rank], right[:rank]


def randomised_svd(
    matrix_KI: Tensor, rank: int, *, seed: int, oversampling: int = OVERSAMPLING, iterations: int = POWER_ITERATIONS
) -> tuple[Tensor, Tensor, Tensor]:
    """About the `rank` largest singular triples, by a random sketch with power iterations (arXiv 0909.4061).

    The same seed gives the same triples; the sketch is drawn on the CPU, so a GPU sees the same one.
    """
    width = min(rank + oversampling, *matrix_KI.shape)
    generator = torch.Generator().manual_seed(seed)
    sketch_IW = torch.randn(matrix_KI.shape[1], width, generator=generator, dtype=torch.float64).to(matrix_KI)
    basis_KW = torch.linalg.qr(matrix_KI @ sketch_IW).Q
    for _ in range(iterations):
        basis_KW = torch.linalg.qr(matrix_KI @ torch.linalg.qr(matrix_KI.T @ basis_KW).Q).Q
    directions_IW, core_WW = torch.linalg.qr(matrix_KI.T @ basis_KW)
    left_WR, values_R, right_RW = truncated_svd(core_WW.T, rank)
    return basis_KW @ left_WR, values_R, right_RW @ directions_IW.T


def _correction(
    left_OR: Tensor, right_RI: Tensor, values_R: Tensor, whitened: Tensor, errors: Sequence[Tensor]
) -> Correction:
    slices = left_OR.split([len(error) for error in errors])
    return Correction(tuple(slices), right_RI, values_R, whitened.square().sum().item())
