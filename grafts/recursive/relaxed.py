"""A linear whose weight other layers share, plus a low-rank difference of its own, and how the two are found."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from grafts.arithmetic import widened


class RelaxedLinear(nn.Module):
    """y = W' x + A (B x) + b: `linear` has the shared W', `left` is A [O, R] and `right` B [R, I]."""

    def __init__(self, linear: nn.Linear, rank: int) -> None:
        super().__init__()
        self.linear = linear
        out_features, in_features = linear.weight.shape
        rank = min(rank, out_features, in_features)
        self.left = nn.Parameter(linear.weight.new_zeros(out_features, rank))
        self.right = nn.Parameter(linear.weight.new_zeros(rank, in_features))

    def forward(self, x: Tensor) -> Tensor:
        """[..., I] to [..., O]."""
        return self.linear(x) + functional.linear(functional.linear(x, self.right), self.left)


def truncated_svd(residual_OI: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The best A [O, R] and B [R, I] for residual = A B: A holds the singular values, B has orthonormal rows.

    The error, as a Frobenius norm, is the root of the sum of the squared singular values beyond `rank`.
    """
    left_OR, values_R, right_RI = torch.linalg.svd(widened(residual_OI), full_matrices=False)
    return left_OR[:, :rank] * values_R[:rank], right_RI[:rank]


def mean(weights: Sequence[Tensor]) -> Tensor:
    """The mean of equal-shaped weights, summed in float32 or wider, in their type."""
    wide = torch.promote_types(weights[0].dtype, torch.float32)
    return torch.stack([weight.to(wide) for weight in weights]).mean(0).to(weights[0].dtype)


def zero_adapter(left_OR: Tensor, right_RI: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A of zeros and a random B, as LoRA starts (arXiv 2106.09685): uniform, of variance 1 / (3 I)."""
    bound = right_RI.shape[1] ** -0.5
    drawn_RI = torch.rand(right_RI.shape, generator=generator).mul_(2 * bound).sub_(bound)
    return torch.zeros_like(left_OR), drawn_RI
