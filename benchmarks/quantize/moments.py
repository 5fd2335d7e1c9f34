"""Linears of a real model, with the second moments of what they read in real text."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.sources import documents, source_model
from grafts.loader import load_model
from stages.artifacts import Model
from stages.evaluate.text_windows import text_windows

WINDOW_TOKENS = 512


@torch.no_grad()
def linears_with_moments(
    model: Path | None, layers: Sequence[int], num_windows: int
) -> dict[str, tuple[Tensor, Tensor]]:
    """Weight [O, I] in float32 and mean of x x^T [I, I] in float64, of every linear in `layers`."""
    with tempfile.TemporaryDirectory() as place:
        source = model or source_model(Path(place) / "model")
        text = documents(Path(place) / "text", source, None, (num_windows + 1) * WINDOW_TOKENS)
        windows = text_windows(Model(source), text, WINDOW_TOKENS, None, "disjoint").windows[:num_windows]
        loaded = load_model(source, dtype=torch.float32)
    chosen = {
        f"{layer}.{name.removeprefix('self_attn.').removeprefix('mlp.')}": module
        for layer in layers
        for name, module in loaded.model.layers[layer].named_modules()
        if isinstance(module, nn.Linear)
    }
    sums = {name: torch.zeros(module.in_features, module.in_features).double() for name, module in chosen.items()}
    for name, module in chosen.items():
        module.register_forward_pre_hook(partial(_add, sums[name]))
    for window in windows:
        loaded(window[None])
    return {name: (module.weight.clone(), sums[name] / windows.numel()) for name, module in chosen.items()}


def _add(moment_II: Tensor, _module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    x_TI = inputs[0].flatten(0, -2)
    moment_II += (x_TI.T @ x_TI).double()
