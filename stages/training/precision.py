"""The precisions that training knows. Imported to plan: no torch at the top."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch

Precision = Literal["bf16", "fp32"]


def torch_dtype(precision: Precision) -> torch.dtype:
    """The dtype of forward and backward passes."""
    import torch

    return torch.bfloat16 if precision == "bf16" else torch.float32
