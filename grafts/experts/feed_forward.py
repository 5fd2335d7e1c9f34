"""A layer of feed-forward experts: every token goes through the K best of N, weighted by its router.

Experts are linears of their own under the names that the base gives them, so that what works on linears (quantisation,
adapters) works on experts. Shapes: B rows, T tokens, P = B·T, C channels, N experts, K chosen.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from grafts.experts.record import Record
from grafts.experts.routing import router_logits, top_gates, within_capacity

if TYPE_CHECKING:
    from grafts.experts.graft import Experts


class Router(nn.Module):
    """Logits of N experts from C channels; the arithmetic is float32."""

    def __init__(self, num_experts: int, like: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(num_experts, like.shape[-1], device=like.device, dtype=like.dtype))

    def forward(self, x: Tensor) -> Tensor:
        """[..., C] to [..., N]."""
        return router_logits(x, self.weight)


class Expert(nn.Module):
    """The gated feed-forward part `mlp` of a base, or one of `split` equal shares of its units."""

    def __init__(self, mlp: nn.Module, split: int) -> None:
        super().__init__()
        (units, channels), like = mlp.gate_proj.weight.shape, mlp.gate_proj.weight
        bias, where = mlp.gate_proj.bias is not None, {"device": like.device, "dtype": like.dtype}
        self.gate_proj = nn.Linear(channels, units // split, bias=bias, **where)
        self.up_proj = nn.Linear(channels, units // split, bias=bias, **where)
        self.down_proj = nn.Linear(units // split, channels, bias=bias, **where)
        self.act_fn = mlp.act_fn

    def forward(self, x: Tensor) -> Tensor:
        """[..., C] to [..., C]."""
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))


class ExpertFeedForward(nn.Module):
    """Takes the place of the feed-forward part `mlp`. Parameters: `router.weight` [N, C] and `experts.<n>.*`."""

    def __init__(self, mlp: nn.Module, graft: Experts, record: Record) -> None:
        super().__init__()
        num_experts = graft.num_experts * graft.split
        self.router = Router(num_experts, mlp.gate_proj.weight)
        self.experts = nn.ModuleList(Expert(mlp, graft.split) for _ in range(num_experts))
        self.top_k, self.renormalise, self.capacity = graft.top_k * graft.split, graft.renormalise, graft.capacity
        self.record = record

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Hidden states [B, T, C] to the layer's output [B, T, C]."""
        x_PC = hidden_states.flatten(0, -2)
        logits_PN = self.router(x_PC)
        gates_PK, experts_PK = top_gates(logits_PN, self.top_k, renormalise=self.renormalise)
        kept = None
        if self.capacity is not None and self.training:
            kept = within_capacity(experts_PK, len(self.experts), self.capacity)
            gates_PK = gates_PK * kept
        self.record.routed(logits_PN, kept)
        return mix_grouped(x_PC, gates_PK, experts_PK, self.experts, every=self.training).view_as(hidden_states)


def mix_grouped(
    x_PC: Tensor, gates_PK: Tensor, experts_PK: Tensor, experts: Sequence[Any] | nn.ModuleList, *, every: bool
) -> Tensor:
    """Σₖ gate · expert(x) of each token [P, C], one call an expert on all of its tokens.

    With `every`, experts without tokens are called too: workers that train together must take part in the same
    collectives, whichever experts their tokens chose.
    """
    num_chosen = experts_PK.shape[-1]
    order = experts_PK.flatten().argsort(stable=True)
    counts = experts_PK.flatten().bincount(minlength=len(experts)).tolist()
    parts = x_PC[order // num_chosen].split(counts)
    outputs = [expert(part) for expert, part in zip(experts, parts, strict=True) if every or len(part)]
    back = torch.empty_like(order)
    back[order] = torch.arange(len(order), device=order.device)
    outputs_PKC = torch.cat(outputs)[back].unflatten(0, (-1, num_chosen)).to(gates_PK.dtype)
    return torch.einsum("pk,pkc->pc", gates_PK, outputs_PKC).to(x_PC.dtype)


def naive_mix(x_PC: Tensor, gates_PK: Tensor, experts_PK: Tensor, experts: Sequence[Any] | nn.ModuleList) -> Tensor:
    """Reference for `mix_grouped`, one token and one expert at a time."""
    rows = []
    for x_C, gates_K, experts_K in zip(x_PC, gates_PK, experts_PK, strict=True):
        parts = [gate * experts[int(e)](x_C[None])[0] for gate, e in zip(gates_K, experts_K, strict=True)]
        rows.append(torch.stack(parts).sum(0))
    return torch.stack(rows).to(x_PC.dtype)
