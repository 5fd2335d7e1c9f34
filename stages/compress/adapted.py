"""Pruned linears that train in few parameters and stay pruned: PERP's adapters (arXiv 2312.15230).

With W the pruned weight, M its mask, B [O, R] and A [R, I]:

    mask_lora    y = (W + s (B A) * M) x      merging is exact, what was pruned stays pruned
    scale_lora   y = (W * (B A)) x            starts with B A = 1 everywhere, so as the identity; merging is exact
    lora_prune   y = (W + s B A) x            plain LoRA; merging prunes again, which changes what was trained

And what these are compared with: all weights that stayed train,

    full         y = (W * M) x
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

LowRank = Literal["mask_lora", "scale_lora", "lora_prune"]
Adapter = Literal[LowRank, "full"]


class AdaptedLinear(nn.Module):
    """A pruned linear with an adapter; its own weight is frozen."""

    mask: Tensor

    def __init__(
        self, linear: nn.Linear, mask_OI: Tensor, kind: LowRank, rank: int, scale: float, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.linear, self.kind, self.scale = linear, kind, scale
        self.register_buffer("mask", mask_OI)
        weight = linear.weight.requires_grad_(False)
        left, right = _initial(kind, weight.shape[0], weight.shape[1], rank, generator)
        self.left, self.right = nn.Parameter(left.to(weight)), nn.Parameter(right.to(weight))

    def forward(self, x: Tensor) -> Tensor:
        """[..., I] to [..., O]."""
        return functional.linear(x, self.weight(), self.linear.bias)

    def weight(self) -> Tensor:
        """The weight that is trained with, [O, I]."""
        product_OI = self.left @ self.right
        match self.kind:
            case "scale_lora":
                return self.linear.weight * product_OI
            case "mask_lora":
                return self.linear.weight + self.scale * product_OI * self.mask
        return self.linear.weight + self.scale * product_OI

    def merged_weight(self) -> Tensor:
        """The weight that is written, pruned as before, [O, I]."""
        return self.weight().masked_fill(~self.mask, 0)

    def merged(self) -> nn.Linear:
        """The linear with the adapter inside, pruned as before."""
        with torch.no_grad():
            self.linear.weight.copy_(self.merged_weight())
        return self.linear


class MaskedLinear(nn.Module):
    """A pruned linear of which every weight that stayed trains."""

    mask: Tensor

    def __init__(self, linear: nn.Linear, mask_OI: Tensor) -> None:
        super().__init__()
        self.linear = linear
        self.register_buffer("mask", mask_OI)
        linear.weight.requires_grad_(True)

    def forward(self, x: Tensor) -> Tensor:
        """[..., I] to [..., O]."""
        return functional.linear(x, self.linear.weight * self.mask, self.linear.bias)

    def merged(self) -> nn.Linear:
        """The linear, pruned as before."""
        with torch.no_grad():
            self.linear.weight.masked_fill_(~self.mask, 0)
        return self.linear


def reset(module: AdaptedLinear) -> None:
    """Put an adapter back to where it changes nothing."""
    with torch.no_grad():
        if module.kind == "scale_lora":
            module.left.fill_(module.left.shape[1] ** -0.5)
            module.right.fill_(module.left.shape[1] ** -0.5)
        else:
            module.left.zero_()


def adapt(model: nn.Module, masks: dict[str, Tensor], kind: Adapter, rank: int, scale: float, seed: int) -> None:
    """Put an adapter, drawn by `seed`, beside every linear that has a mask, in place; `full` has nothing to draw."""
    generator = torch.Generator().manual_seed(seed)
    for name, mask_OI in masks.items():
        linear = model.get_submodule(name)
        assert isinstance(linear, nn.Linear), f"{name} is a {type(linear).__name__}"
        if kind == "full":
            model.set_submodule(name, MaskedLinear(linear, mask_OI))
        else:
            model.set_submodule(name, AdaptedLinear(linear, mask_OI, kind, rank, scale, generator))


def num_trained(model: nn.Module) -> int:
    """How many numbers of `model` train: of a masked linear those that stayed."""
    pruned = sum((~each.mask).sum().item() for each in model.modules() if isinstance(each, MaskedLinear))
    return sum(p.numel() for p in model.parameters() if p.requires_grad) - int(pruned)


def merge(model: nn.Module) -> None:
    """Put the plain linears back, with what the adapters learnt, in place."""
    adapted = [(name, each) for name, each in model.named_modules() if isinstance(each, AdaptedLinear | MaskedLinear)]
    for name, module in adapted:
        model.set_submodule(name, module.merged())


def _initial(kind: LowRank, num_out: int, num_in: int, rank: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """B and A: of ones over the root of the rank where they multiply, else B of zeros, as LoRA starts."""
    if kind == "scale_lora":
        return torch.full((num_out, rank), rank**-0.5), torch.full((rank, num_in), rank**-0.5)
    bound = num_in**-0.5
    drawn = torch.rand(rank, num_in, generator=generator)
    return torch.zeros(num_out, rank), drawn * 2 * bound - bound
