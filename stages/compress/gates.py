"""Gates on the layers of a frozen model: how much of each layer is wanted (FoldGPT, arXiv 2407.00928).

The paper's formulas are not public in full; this is a reconstruction. With gates g in [0, 1],

    x_{l+1} = x_l + g_l (f_l(x_l) - x_l),   L = CE + p mean(g (1 - g)) + b (mean(g) - share)^2 :

g = 1 is the model, g_l = 0 the model without layer l, p drives each gate to one of the two, b keeps the share. Training
raises p from 0: at once it would keep every gate where it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from grafts.bases import decoder_layers


class Gates(nn.Module):
    """One gate for each of `num_layers` layers, open at the start; those at the ends stay so, if there are others."""

    def __init__(self, num_layers: int) -> None:
        super().__init__()
        self.num_ends = 1 if num_layers > 2 else 0
        self.inner = nn.Parameter(torch.ones(num_layers - 2 * self.num_ends))

    def forward(self) -> Tensor:
        """The gates [L], in [0, 1]."""
        end = self.inner.new_ones(self.num_ends)
        return torch.cat([end, _Clamped.apply(self.inner), end])


class _Clamped(torch.autograd.Function):
    """Clamp to [0, 1], with a gradient that can lead back inside but not further out."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.clamp(0, 1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (x,), (grad,) = ctx.saved_tensors, grads
        outward = ((x >= 1) & (grad < 0)) | ((x <= 0) & (grad > 0))
        return grad.masked_fill(outward, 0)


@contextmanager
def gated(model: PreTrainedModel, gates_L: Tensor) -> Iterator[None]:
    """Let each layer of `model` count by its gate, for a while; exactly the model where all are 1, or deletion at 0."""
    handles = [
        layer.register_forward_hook(lambda _module, x, y, gate=gate: torch.lerp(x[0], y, gate))
        for layer, gate in zip(decoder_layers(model), gates_L, strict=True)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def penalty(gates_L: Tensor, share: float, polarisation: float, budget: float) -> Tensor:
    """What the gates cost beside the loss of the text, in nats a token."""
    undecided = (gates_L * (1 - gates_L)).mean()
    return polarisation * undecided + budget * (gates_L.mean() - share).square()


def kept_layers(gates: Sequence[float], num_kept: int) -> list[int]:
    """The `num_kept` layers with the widest gates, ascending; the first and the last among them, ties to the first."""
    inner = sorted(range(1, len(gates) - 1), key=lambda layer: -gates[layer])
    return sorted([0, len(gates) - 1, *inner[: num_kept - 2]])
