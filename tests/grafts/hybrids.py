"""Hybrids of every kind, for tests."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from grafts import GraftedForCausalLM, apply
from grafts.hybrid.graft import HybridHeads, mixers
from grafts.hybrid.settings import DeltaNet, Softmax
from tests.grafts.families import tiny

HEADS = ((0, 3), (1,), ())

ALL = (0, 1, 2, 3)

TEACHER: dict[str, Any] = {"softmax": Softmax.teacher(), "normalise": False}

LOOSE: dict[str, Any] = {"rtol": 0, "atol": 1e-4}

GRAFTS = {
    "paper": HybridHeads(full_heads=HEADS),
    "bare": HybridHeads(full_heads=HEADS, deltanet=DeltaNet(conv=None, rope=False), **TEACHER),
    "every switch": HybridHeads(
        full_heads=HEADS, deltanet=DeltaNet(negative_eigenvalues=True, output_norm=True, output_gate=True)
    ),
    "one layer": HybridHeads(full_heads=(None, (2,), None)),
    "windows": HybridHeads(full_heads=HEADS, others="sliding_window", window=5),
    "windows and sinks": HybridHeads(full_heads=HEADS, others="sliding_window", window=5, sinks=2),
}


def hybrid(graft: HybridHeads, family: str = "llama", **changes: Any) -> GraftedForCausalLM:
    """In float64, with every new parameter away from its start."""
    model = apply(tiny(family, **changes), [graft])
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(1)
        for mixer in mixers(model).values():
            for parameter in mixer.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.double()


def logits(model: PreTrainedModel, ids: Tensor, **options: Any) -> Tensor:
    with torch.no_grad():
        return model(ids, **options).logits
