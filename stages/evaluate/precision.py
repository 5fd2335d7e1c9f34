"""The types that a model can be measured in. Imported to plan: no torch at the top."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch

ComputeType = Literal["auto", "bfloat16", "float16", "float32"]
"""`auto`: bfloat16 where the hardware has instructions for it, else float32."""


def compute_dtype(name: ComputeType, device: str) -> torch.dtype:
    """The type named, on that type of device."""
    import torch

    from grafts.arithmetic import computing_dtype

    return computing_dtype(torch.bfloat16, device) if name == "auto" else getattr(torch, name)
