"""Attribution patching: the first-order approximation of activation patching, all heads from one backward pass.

Instead of exchanging a head's output, the slope of the logit difference in its direction is taken at the clean text:
IE ≈ -<∂m/∂O, O' - O> / (m(x) - m(x')). Received and sent effects differentiate the same functions that
`patching.Patching` evaluates, so the two agree to first order in the exchange. How far is reported by the stage.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from stages.transfer.patching import Changes, Effects, Trial


class Attribution(Effects):
    """Approximate: the exchange of every head times a gradient, one backward pass for all."""

    @torch.enable_grad()
    def _of_heads(self, trial: Trial, rows: Tensor | slice, measure: Callable[[Changes], Tensor]) -> Tensor:
        recorded = [attention_TD[rows] for attention_TD in trial.clean.attention]
        nothing_RD = torch.zeros_like(recorded[0])
        leaves = [nothing_RD.clone().requires_grad_() for _ in recorded]
        scores_V = measure({layer: torch.stack([nothing_RD, leaf]) for layer, leaf in enumerate(leaves)})
        if not scores_V.requires_grad:
            return torch.zeros(len(leaves), self.body.shape.num_heads, dtype=torch.float64)
        slopes = torch.autograd.grad(scores_V[1], leaves, allow_unused=True, materialize_grads=True)
        return torch.stack([self._along(trial, layer, rows, slope_RD) for layer, slope_RD in enumerate(slopes)])

    @torch.no_grad()
    def _along(self, trial: Trial, layer: int, rows: Tensor | slice, slope_RD: Tensor) -> Tensor:
        """The slope along the exchange of each head [H]."""
        weight_DHK = self.body.attentions[layer].o_proj.weight.unflatten(-1, (self.body.shape.num_heads, -1))
        slope_RHK = torch.einsum("rd,dhk->rhk", slope_RD, weight_DHK)
        return -(slope_RHK.double() * trial.exchange(layer, rows).double()).sum((0, 2)).cpu() / trial.drop
