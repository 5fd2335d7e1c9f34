"""Which experts the tokens of a text go to, counted without gradients."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from grafts.experts.routing import expert_load, router_entropy
from stages.evaluate.distance import evaluating


@dataclass(frozen=True)
class Loads:
    """Where the tokens of one text went."""

    feed_forward: list[list[float]]
    """For each layer, the share of the assignments that each expert got; rows sum to 1."""
    attention: list[list[float]]
    """For each layer, the mean gate of each attention expert; empty without any."""
    entropy: float
    """Mean entropy of the feed-forward routers in nats."""


def measure_loads(model: nn.Module, windows_NT: Tensor, top_k: int, batch_size: int) -> Loads:
    """Loads of `model` over all the tokens of `windows_NT`."""
    device = next(model.parameters()).device
    shares, gates, entropies = [], [], []
    with evaluating(model), torch.no_grad():
        for ids_BT in windows_NT.split(batch_size):
            out = model(input_ids=ids_BT.to(device), use_cache=False, output_router_logits=True, logits_to_keep=1)
            weight = len(ids_BT) / len(windows_NT)
            shares.append(weight * torch.stack([expert_load(each.float(), top_k).cpu() for each in out.router_logits]))
            entropies.append(weight * sum(router_entropy(each.float()).item() for each in out.router_logits))
            attention = getattr(out, "attention_router_logits", None) or ()
            gates.append([weight * each.softmax(-1).mean(0).cpu() for each in attention])
    shares_LN = torch.stack(shares).sum(0)
    gates_LN = [torch.stack(layer).sum(0).tolist() for layer in zip(*gates, strict=True)]
    return Loads(shares_LN.tolist(), gates_LN, sum(entropies) / len(shares_LN))
