"""The random-feature model in which small learning rates order data by where they lead, and large ones do not.

Recipes differ in what they teach (a bias of their labels that more training cannot mend), in the noise of their labels
and in the scale of their inputs. The first decides how good a recipe can be; the other two decide which learning rate
suits it. A proxy is ReLU features with a linear readout, trained by SGD; all recipes and seeds are trained at once.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

INPUTS, STEPS, BATCH = 20, 1500, 16
BIAS, NOISE, SCALE = (0.2, 0.6), 5.0, (0.9, 1.2)


@dataclass(frozen=True)
class World:
    """R recipes: the teacher of the validation data, and what each recipe's labels, noise and inputs are."""

    teacher: np.ndarray
    bias: np.ndarray
    noise: np.ndarray
    scale: np.ndarray

    @classmethod
    def of(cls, num_recipes: int, seed: int) -> World:
        rng = np.random.default_rng(seed)
        return cls(
            teacher=rng.standard_normal((INPUTS, 8)) / np.sqrt(INPUTS),
            bias=rng.standard_normal((num_recipes, INPUTS, 8))
            / np.sqrt(INPUTS)
            * rng.permutation(np.linspace(BIAS[0], BIAS[1], num_recipes))[:, None, None],
            noise=rng.permutation(np.linspace(0.0, NOISE, num_recipes)),
            scale=rng.permutation(np.linspace(SCALE[0], SCALE[1], num_recipes)),
        )

    def draw(self, rng: np.random.Generator, shape: tuple[int, ...], noisy: bool) -> tuple[np.ndarray, np.ndarray]:
        """Inputs [R, *shape, d] and labels [R, *shape] of each recipe."""
        extra = (1,) * len(shape)
        x = rng.standard_normal((len(self.noise), *shape, INPUTS)) * self.scale.reshape(-1, *extra, 1)
        weights = self.teacher + self.bias
        hidden = np.einsum("r...d,rdk->r...k", x, weights)
        noise = rng.standard_normal(x.shape[:-1]) * self.noise.reshape(-1, *extra)
        return x, np.tanh(hidden).sum(-1) + noisy * noise

    def validation(self, count: int = 1000) -> tuple[np.ndarray, np.ndarray]:
        """Inputs [N, d] and clean labels [N]."""
        x = np.random.default_rng(99).standard_normal((count, INPUTS))
        return x, np.tanh(x @ self.teacher).sum(-1)


def features(x: np.ndarray, width: int, seed: int) -> np.ndarray:
    """ReLU features [..., m] whose squared norm is about 1 for inputs of unit scale."""
    directions = np.random.default_rng(1000 + seed).standard_normal((INPUTS, width))
    return np.maximum(x @ directions, 0) * np.sqrt(2 / (INPUTS * width))


def train(world: World, rate: float, width: int, seeds: range) -> tuple[np.ndarray, np.ndarray]:
    """Validation losses [R, S] before and after SGD at the constant `rate`."""
    x_val, y_val = world.validation()
    initial = np.full((len(world.noise), len(seeds)), np.mean(y_val**2))
    final = np.empty_like(initial)
    for column, seed in enumerate(seeds):
        rng = np.random.default_rng(seed)
        readout_Rm = np.zeros((len(world.noise), width))
        for _ in range(STEPS // 100):
            x, y = world.draw(rng, (100, BATCH), noisy=True)
            phi = features(x, width, seed)
            for step in range(100):
                error_RB = np.einsum("rbm,rm->rb", phi[:, step], readout_Rm) - y[:, step]
                readout_Rm -= rate * np.einsum("rb,rbm->rm", error_RB, phi[:, step]) / BATCH
        predicted_RN = readout_Rm @ features(x_val, width, seed).T
        final[:, column] = ((predicted_RN - y_val) ** 2).mean(1)
    return initial, final


def optimal(world: World, width: int = 400, count: int = 4000) -> np.ndarray:
    """Validation losses [R] of the least-squares readout of each recipe: what training could lead to."""
    x_val, y_val = world.validation()
    phi_val, rng = features(x_val, width, 7), np.random.default_rng(5)
    x, y = world.draw(rng, (count,), noisy=False)
    losses = []
    for x_Nd, y_N in zip(x, y, strict=True):
        phi = features(x_Nd, width, 7)
        readout = np.linalg.solve(phi.T @ phi + 1e-3 * count / width * np.eye(width), phi.T @ y_N)
        losses.append(((phi_val @ readout - y_val) ** 2).mean())
    return np.array(losses)
