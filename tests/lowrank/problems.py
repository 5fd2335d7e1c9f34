"""Random correction problems: the errors of modules that read one input, and that input's second moment."""

from __future__ import annotations

from typing import NamedTuple

import torch
from hypothesis import strategies as st
from torch import Tensor

from grafts.lowrank.covariance import Moments, Roots, roots, shrink
from grafts.lowrank.glowq import Correction, solve

CLOSE = {"rtol": 1e-8, "atol": 1e-10}


class Problem(NamedTuple):
    errors: list[Tensor]
    covariance: Tensor
    """already shrunk"""
    magnitude: Tensor

    @property
    def stacked(self) -> Tensor:
        return torch.cat(self.errors)

    @property
    def roots(self) -> Roots:
        return roots(self.covariance)


def inputs(num_tokens: int, width: int, generator: torch.Generator, *, decay: float = 0.5) -> Tensor:
    """Correlated vectors [N, I] of uneven strength, float64, in no direction the same."""
    mixing = torch.randn(width, width, generator=generator, dtype=torch.float64)
    strength = torch.arange(1, width + 1, dtype=torch.float64).pow(-decay)
    return torch.randn(num_tokens, width, generator=generator, dtype=torch.float64) @ (mixing * strength)


def problem(outputs: list[int], width: int, seed: int, *, tokens: int = 0, zero: bool = False) -> Problem:
    generator = torch.Generator().manual_seed(seed)
    moments = Moments(width)
    moments.add(inputs(tokens or 3 * width, width, generator) * (0.0 if zero else 1.0))
    errors = [torch.randn(size, width, generator=generator, dtype=torch.float64) for size in outputs]
    return Problem(errors, shrink(moments.covariance()), moments.mean_magnitude())


def solve_separately(errors: list[Tensor], weighting: Roots, rank: int, *, randomised: bool = True) -> list[Correction]:
    """A right factor of its own for each of `errors`."""
    return [solve([error], weighting, rank, randomised=randomised) for error in errors]


@st.composite
def problems(draw: st.DrawFn, *, max_modules: int = 4) -> Problem:
    """One to four modules of odd widths, with fewer tokens than features now and then, or inputs that are all zero."""
    outputs = draw(st.lists(st.integers(1, 17), min_size=1, max_size=max_modules))
    width, tokens = draw(st.integers(1, 23)), draw(st.integers(1, 60))
    return problem(outputs, width, draw(st.integers(0, 10_000)), tokens=tokens, zero=draw(st.booleans()))
