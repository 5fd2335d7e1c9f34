"""AWQ: before rounding, make the weights of strong inputs larger, and those inputs weaker by as much.

arXiv 2306.00978. W x = (W diag(s)) (x / s), and rounding hurts a large weight less. s is the mean magnitude of each
input to a power that is searched for, the error being measured on what the linear gives for its inputs.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from grafts.lowrank.covariance import output_change
from grafts.rtn import Bits, dequantise, quantise


class Scaling(NamedTuple):
    """The best factors for one input, and what every exponent gave."""

    exponent: float
    factors: Tensor
    """s, float32 [I]: weights are multiplied by them, inputs divided"""
    errors: Tensor
    """float64 [num_exponents]: mean squared change of the outputs for the exponents 0, 1/n, ... (n-1)/n"""


def search_scaling(
    weight_OI: Tensor,
    covariance_II: Tensor,
    magnitude_I: Tensor,
    bits: Bits,
    group_size: int,
    *,
    symmetric: bool = True,
    num_exponents: int = 20,
) -> Scaling:
    """The factors that leave the least error when `weight_OI` is rounded to nearest; exponent 0 is no scaling.

    `magnitude_I` is the mean of |x|, `covariance_II` that of x x^T. Modules that read one input must be stacked: they
    share its factors. Never worse than round-to-nearest on the inputs it was given.
    """
    exponents = [step / num_exponents for step in range(num_exponents)]
    errors = [
        output_change(
            weight_OI.float() - scaled_rounding(weight_OI, factors_I, bits, group_size, symmetric=symmetric),
            covariance_II.float(),
        )
        for factors_I in (scaling_factors(magnitude_I, exponent) for exponent in exponents)
    ]
    best = int(torch.stack(errors).argmin())
    return Scaling(exponents[best], scaling_factors(magnitude_I, exponents[best]), torch.stack(errors).double())


def scaling_factors(magnitude_I: Tensor, exponent: float) -> Tensor:
    """Factors magnitude ** exponent, float32, with the largest and the smallest factor each other's inverse.

    Inputs that are never seen count as the ten-thousandth part of the strongest; all factors are 1 if none is seen.
    """
    strongest = magnitude_I.max()
    if strongest == 0:
        return torch.ones_like(magnitude_I, dtype=torch.float32)
    factors_I = (magnitude_I / strongest).clamp(min=1e-4).pow(exponent).float()
    return factors_I / (factors_I.max() * factors_I.min()).sqrt()


def scaled_rounding(
    weight_OI: Tensor, factors_I: Tensor, bits: Bits, group_size: int, *, symmetric: bool = True
) -> Tensor:
    """The weight that acts on x, float32, when `weight_OI` times the factors is rounded and x is divided by them."""
    scaled_OI = (weight_OI.float() * factors_I).to(weight_OI.dtype)
    return dequantise(quantise(scaled_OI, bits, group_size, symmetric=symmetric)).float() / factors_I


def naive_errors(
    weight_OI: Tensor,
    inputs_NI: Tensor,
    magnitude_I: Tensor,
    bits: Bits,
    group_size: int,
    *,
    symmetric: bool = True,
    num_exponents: int = 20,
) -> Tensor:
    """Reference for the errors of `search_scaling`: on the inputs themselves, token by token."""
    errors = []
    for step in range(num_exponents):
        factors_I = scaling_factors(magnitude_I, step / num_exponents)
        rounded_OI = dequantise(quantise(weight_OI * factors_I, bits, group_size, symmetric=symmetric))
        changes = [((weight_OI @ x_I) - rounded_OI @ (x_I / factors_I)).square().sum() for x_I in inputs_NI]
        errors.append(torch.stack(changes).mean())
    return torch.stack(errors).double()
