"""Second moments of a module's inputs, and their square roots.

The moment is uncentred, Sigma = mean of x x^T over tokens, because tr(D Sigma D^T) is then exactly the mean squared
change of a linear's output when its weight changes by D. QERA (arXiv 2410.06040) and GlowQ (arXiv 2603.25385) take its
square root; GPTQ's Hessian (arXiv 2210.17323) is twice it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

import torch
from torch import Tensor

from grafts.arithmetic import widened

CHUNK_TOKENS: Final = 2048
"""Tokens multiplied at once, in float32; the products are summed in float64."""
CHUNK_FEATURES: Final = 384
"""Columns multiplied at once where half of a product is known: by symmetry, or as zero."""
SHRINKAGE: Final = 0.05
"""Share of the mean variance that every direction gets, as in GlowQ's code."""
EIGENVALUE_FLOOR: Final = 1e-8
"""Least eigenvalue of a covariance, relative to their mean."""


class Moments:
    """Sums over the tokens of one input: of x x^T and of |x|, in float64."""

    def __init__(self, width: int, device: torch.device | str = "cpu") -> None:
        self.num_tokens = 0
        self._products_II = torch.zeros(width, width, dtype=torch.float64, device=device)
        self._magnitudes_I = torch.zeros(width, dtype=torch.float64, device=device)

    @property
    def width(self) -> int:
        """Features of x."""
        return self._magnitudes_I.numel()

    @property
    def device(self) -> torch.device:
        """Where the sums are."""
        return self._magnitudes_I.device

    @property
    def is_finite(self) -> bool:
        """Whether all that was counted so far is finite."""
        return bool(torch.isfinite(self._magnitudes_I).all())

    def add(self, x: Tensor) -> None:
        """Count every vector of `x` [..., I]."""
        x_NI = x.reshape(-1, self.width)
        for chunk_CI in map(widened, x_NI.split(CHUNK_TOKENS)):
            for start in range(0, self.width, CHUNK_FEATURES):
                stop = start + CHUNK_FEATURES
                self._products_II[start:stop, start:] += chunk_CI[:, start:stop].T @ chunk_CI[:, start:]
            self._magnitudes_I += chunk_CI.abs().sum(0)
        self.num_tokens += x_NI.shape[0]

    def merge(self, other: Moments) -> None:
        """Count what `other`, of the same width, has counted."""
        self.num_tokens += other.num_tokens
        self._products_II += other._products_II.to(self.device)
        self._magnitudes_I += other._magnitudes_I.to(self.device)

    def covariance(self) -> Tensor:
        """Mean of x x^T, float64 [I, I], symmetric to the bit. Raises ValueError when nothing was counted."""
        self._require_tokens()
        found_II = self._products_II / self.num_tokens
        for start in range(0, self.width, CHUNK_FEATURES):
            stop = start + CHUNK_FEATURES
            block_CC = found_II[start:stop, start:stop]
            block_CC.copy_(block_CC.triu() + block_CC.triu(1).T)
            found_II[stop:, start:stop] = found_II[start:stop, stop:].T
        return found_II

    def mean_magnitude(self) -> Tensor:
        """Mean of |x|, float64 [I]. Raises ValueError when nothing was counted."""
        self._require_tokens()
        return self._magnitudes_I / self.num_tokens

    def _require_tokens(self) -> None:
        if self.num_tokens == 0:
            raise ValueError("no token was counted: there are no moments")


class Roots(NamedTuple):
    """S with S S^T = Sigma, and S^-1, float64: both [I, I], or both [I] where Sigma is diagonal.

    The inverse is None where S is lower triangular: solving with it is cheaper for the few rows that are asked for.
    Which root it is does not matter to a correction: the error ||D S|| and the best A B are the same for all of them.
    """

    root: Tensor
    inverse: Tensor | None

    @property
    def is_diagonal(self) -> bool:
        """Whether both are vectors."""
        return self.root.ndim == 1

    def whiten(self, matrix_OI: Tensor) -> Tensor:
        """`matrix_OI` times S, in float64: its Frobenius norm is the output's root mean square."""
        if self.inverse is not None:
            return _times(matrix_OI.double(), self.root)
        blocks = _triangular_blocks(self.root)
        return torch.cat([matrix_OI[:, at].double() @ part for at, part in blocks], dim=1)

    def power(self, matrix_OI: Tensor) -> float:
        """||D S||_F^2."""
        return self.whiten(matrix_OI).square().sum().item()

    def unwhiten(self, matrix_RI: Tensor) -> Tensor:
        """`matrix_RI` times S^-1."""
        if self.inverse is None:
            return torch.linalg.solve_triangular(self.root, matrix_RI, upper=False, left=False)
        return _times(matrix_RI, self.inverse)


def shrink(covariance_II: Tensor, share: float = SHRINKAGE) -> Tensor:
    """(1 - share) Sigma + share (tr Sigma / I) identity; the identity where Sigma is zero.

    Makes Sigma invertible where fewer tokens than features were seen. With share 0 only a zero Sigma changes.
    """
    mean_variance = covariance_II.diagonal().mean()
    if mean_variance == 0:
        return torch.eye(len(covariance_II), dtype=covariance_II.dtype, device=covariance_II.device)
    shrunk_II = (1 - share) * covariance_II
    shrunk_II.diagonal().add_(share * mean_variance)
    return shrunk_II


def shrunk_change(change: float, matrix_OI: Tensor, mean_variance: float, share: float) -> float:
    """`output_change` of a matrix by `shrink`'s Sigma, given its `change` by Sigma itself and Sigma's mean variance."""
    squared_norm = torch.linalg.vector_norm(matrix_OI.float()).square().item()
    return (1 - share) * change + share * mean_variance * squared_norm if mean_variance else squared_norm


def triangular_roots(covariance_II: Tensor) -> Roots:
    """Roots by Cholesky's factor: a fraction of the work of `roots`. Raises ValueError when Sigma is not definite."""
    factor_II, info = torch.linalg.cholesky_ex(covariance_II.double())
    if info.item():
        raise ValueError(f"a covariance of width {len(covariance_II)} has directions without variance: shrink it first")
    return Roots(factor_II, None)


def roots(covariance_II: Tensor) -> Roots:
    """Symmetric roots, Sigma^{1/2} and Sigma^{-1/2}, by its eigenvalues, in float64, none taken below the floor."""
    eigenvalues_I, vectors_II = torch.linalg.eigh(covariance_II.double())
    scales_I = _above_floor(eigenvalues_I).sqrt()
    return Roots((vectors_II * scales_I) @ vectors_II.T, (vectors_II / scales_I) @ vectors_II.T)


def diagonal_roots(variance_I: Tensor) -> Roots:
    """Roots of a diagonal covariance, given as its diagonal."""
    scales_I = _above_floor(variance_I.double()).sqrt()
    return Roots(scales_I, 1 / scales_I)


def output_change(change_OI: Tensor, covariance_II: Tensor) -> Tensor:
    """tr(D Sigma D^T): the mean squared length by which a linear's output moves when its weight moves by D.

    Sigma is symmetric: only what is right of its diagonal blocks is multiplied.
    """
    change_OI = change_OI.to(covariance_II.dtype)
    total = covariance_II.new_zeros(())
    for start in range(0, change_OI.shape[1], CHUNK_FEATURES):
        stop = start + CHUNK_FEATURES
        block_OC = change_OI[:, start:stop]
        total += ((block_OC @ covariance_II[start:stop, start:stop]) * block_OC).sum()
        total += 2 * ((block_OC @ covariance_II[start:stop, stop:]) * change_OI[:, stop:]).sum()
    return total


def _above_floor(eigenvalues_I: Tensor) -> Tensor:
    mean = eigenvalues_I.mean()
    return eigenvalues_I.clamp(min=(mean * EIGENVALUE_FLOOR).item()) if mean > 0 else torch.ones_like(eigenvalues_I)


def _triangular_blocks(root_II: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Columns of a lower triangular matrix, some at a time, from their diagonal down: those rows, and the part."""
    for start in range(0, len(root_II), CHUNK_FEATURES):
        yield slice(start, None), root_II[start:, start : start + CHUNK_FEATURES]


def _times(matrix: Tensor, root: Tensor) -> Tensor:
    return matrix * root if root.ndim == 1 else matrix @ root
