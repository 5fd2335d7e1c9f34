"""A convex quadratic through the losses of a sweep, in the logarithms of learning rate and batch. Pure numpy.

Losses over (log learning rate, log batch) are convex with a wide plateau around the optimum and steep walls far from
it, so the fit is to the best points only. Where least squares would bend downwards, the nearest convex fit is taken:
then the sweep does not hold its optimum, which lies on its edge.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

GRID = 201
"""Points a side on which the optimum inside the sweep is looked for: a hundredth of the range either way."""
ROUNDS = 300
"""Of the projection onto convex fits; it converges in tens."""


@dataclass(frozen=True)
class Surface:
    """`offset + slope x + x curvature x / 2` for centred x [K], K being 1 or 2."""

    centre: np.ndarray
    offset: float
    slope: np.ndarray
    curvature: np.ndarray
    """[K, K] with no negative eigenvalue."""

    def __call__(self, x_PK: np.ndarray) -> np.ndarray:
        """The fitted losses [P]."""
        x = x_PK - self.centre
        return self.offset + x @ self.slope + np.einsum("pi,ij,pj->p", x, self.curvature, x) / 2

    def optimum(self, low_K: np.ndarray, high_K: np.ndarray) -> np.ndarray:
        """Where it is lowest inside the box [K]."""
        axes = [np.linspace(a, b, GRID if b > a else 1) for a, b in zip(low_K, high_K, strict=True)]
        grid_PK = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, len(axes))
        return grid_PK[int(self(grid_PK).argmin())]


def fit_surface(x_PK: np.ndarray, losses_P: np.ndarray) -> Surface:
    """Least squares over convex quadratics. Raises ValueError when the points do not decide one."""
    centre, num_axes = x_PK.mean(0), x_PK.shape[1]
    design_PC = _design(x_PK - centre)
    if np.linalg.matrix_rank(design_PC) < design_PC.shape[1]:
        raise ValueError(
            f"{len(x_PK)} points do not decide a quadratic of {num_axes} axes, {design_PC.shape[1]} that are spread do"
        )
    found = np.linalg.lstsq(design_PC, losses_P, rcond=None)[0]
    if np.linalg.eigvalsh(_curvature(found, num_axes)).min() < 0:
        found = _convex(design_PC, losses_P, num_axes)
    return Surface(centre, float(found[0]), found[1 : 1 + num_axes], _curvature(found, num_axes))


def best_points(losses_P: np.ndarray, share: float, least: int) -> np.ndarray:
    """Indices of the lowest `share` of the losses, `least` of them at least."""
    return np.sort(np.argsort(losses_P, kind="stable")[: max(least, round(share * len(losses_P)))])


def num_coefficients(num_axes: int) -> int:
    """Of a quadratic: 3 over one axis, 6 over two."""
    return 1 + num_axes + num_axes * (num_axes + 1) // 2


def optimum_interval(
    x_PK: np.ndarray, losses_P: np.ndarray, box: tuple[np.ndarray, np.ndarray], confidence: float, draws: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Low and high end [K] of the optimum, by a bootstrap of the fit's residuals."""
    surface, rng = fit_surface(x_PK, losses_P), np.random.default_rng(seed)
    fitted_P = surface(x_PK)
    freedom = max(1, len(losses_P) - num_coefficients(x_PK.shape[1]))
    residuals_P = (losses_P - fitted_P) * np.sqrt(len(losses_P) / freedom)
    found = [fit_surface(x_PK, fitted_P + rng.choice(residuals_P, len(losses_P))).optimum(*box) for _ in range(draws)]
    tail = (1 - confidence) / 2
    return np.quantile(found, tail, axis=0), np.quantile(found, 1 - tail, axis=0)


def _design(x_PK: np.ndarray) -> np.ndarray:
    """Columns 1, x_i, and x_i x_j for i <= j (squares halved, so that coefficients are entries of the curvature)."""
    num_axes = x_PK.shape[1]
    products = [x_PK[:, i] * x_PK[:, j] * (0.5 if i == j else 1) for i in range(num_axes) for j in range(i, num_axes)]
    return np.stack([np.ones(len(x_PK)), *x_PK.T, *products], 1)


def _curvature(coefficients: np.ndarray, num_axes: int) -> np.ndarray:
    upper = np.zeros((num_axes, num_axes))
    upper[np.triu_indices(num_axes)] = coefficients[1 + num_axes :]
    return upper + np.triu(upper, 1).T


def _convex(design_PC: np.ndarray, losses_P: np.ndarray, num_axes: int) -> np.ndarray:
    """Least squares with a curvature that has no negative eigenvalue, by alternating projections (ADMM)."""
    weight_C = np.zeros(design_PC.shape[1])
    gram = design_PC.T @ design_PC
    # An entry beside the diagonal is in the matrix twice: so weighted, clipping eigenvalues is the projection.
    rows, columns = np.triu_indices(num_axes)
    weight_C[1 + num_axes :] = np.diag(gram)[1 + num_axes :].mean() * np.where(rows == columns, 1, 2)
    left, right = gram + np.diag(weight_C), design_PC.T @ losses_P
    kept, dual = np.zeros_like(weight_C), np.zeros_like(weight_C)
    for _ in range(ROUNDS):
        found = np.linalg.solve(left, right + weight_C * (kept - dual))
        kept = _without_negative(found + dual, num_axes)
        dual += np.where(weight_C > 0, found - kept, 0.0)
    return kept


def _without_negative(coefficients: np.ndarray, num_axes: int) -> np.ndarray:
    values, vectors = np.linalg.eigh(_curvature(coefficients, num_axes))
    curvature = (vectors * values.clip(min=0)) @ vectors.T
    return np.concatenate([coefficients[: 1 + num_axes], curvature[np.triu_indices(num_axes)]])
