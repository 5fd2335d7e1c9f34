"""What the tensors of a mixture are made of, as pure functions: a copy, noise, units anew, a share, a mean, a router.

Everything drawn at random depends on the seed and on what is drawn for, not on the order of drawing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor


def generator(seed: int, *what: object) -> torch.Generator:
    """Random numbers for `what`, the same on every machine."""
    digest = hashlib.sha256(repr((seed, *what)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def mean(tensors: Sequence[Tensor]) -> Tensor:
    """The mean of tensors of one shape, in the type of the first; exactly that tensor when all are equal."""
    first = tensors[0]
    if len(tensors) == 1:
        return first
    wide = torch.float64 if first.dtype in (torch.float32, torch.float64) else torch.float32  # no sum is rounded
    total = first.to(wide, copy=True)
    for tensor in tensors[1:]:
        total += tensor
    return (total / len(tensors)).to(first.dtype)


def with_noise(weight: Tensor, share: float, draw: torch.Generator) -> Tensor:
    """`weight` plus Gaussian noise of `share` times its own standard deviation; itself for a share of 0."""
    if share == 0:
        return weight
    noise = torch.randn(weight.shape, generator=draw).to(weight.device)
    return noise.mul_(share * weight.float().std()).add_(weight).to(weight.dtype)  # in place: it may be a large matrix


def dropped_units(num_units: int, ratio: float, draw: torch.Generator) -> Tensor:
    """Which round(ratio · num_units) of the feed-forward units start anew, ascending."""
    return torch.randperm(num_units, generator=draw)[: round(ratio * num_units)].sort().values


def renewed(weight: Tensor, units: Tensor, dim: int, draw: torch.Generator) -> Tensor:
    """`weight` with its rows (`dim` 0) or columns (1) `units` drawn from the normal with their own mean and deviation.

    Drop-Upcycling (arXiv 2502.19261). Without units, the weight itself.
    """
    if not len(units):
        return weight
    units = units.to(weight.device)
    old = weight.index_select(dim, units).float()
    drawn = torch.randn(old.shape, generator=draw).to(weight.device)
    new = old.mean() + (old.std() if old.numel() > 1 else 0.0) * drawn
    return weight.index_copy(dim, units, new.to(weight.dtype))


def share_of_units(weight: Tensor, share: int, split: int, dim: int) -> Tensor:
    """The `share`-th of `split` equal parts of the units, which lie along `dim`; the weight itself for one part."""
    return weight if split == 1 else weight.chunk(split, dim)[share]


def random_router(num_experts: int, split: int, channels: int, std: float, draw: torch.Generator) -> Tensor:
    """Normal weights [num_experts · split, channels], float32; the shares of one expert have the same row.

    So the best `top_k · split` are always whole experts at first (virtual groups, arXiv 2410.07524).
    """
    return (torch.randn(num_experts, channels, generator=draw) * std).repeat_interleave(split, dim=0)
