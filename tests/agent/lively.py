"""A tiny model whose attention matters: at their usual size, random weights hardly look back."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import PreTrainedModel

from grafts.loader import load_model


def lively(directory: Path, factor: float = 12.0) -> PreTrainedModel:
    """The model in `directory` with its matrices made larger."""
    model = load_model(directory, dtype=torch.float32)
    for parameter in model.parameters():
        parameter.data *= factor if parameter.ndim == 2 else 1
    return model
