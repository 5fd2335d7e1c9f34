"""The types that a model can be measured in, and what to tell when one is too small. Imported to plan: no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from stages.errors import UserError

if TYPE_CHECKING:
    import torch

ComputeType = Literal["auto", "bfloat16", "float16", "float32"]
"""`auto`: bfloat16 where the hardware has instructions for it, else float32."""


def gives_nan(what: str, where: str = "") -> UserError:
    """What to tell when a model gives no numbers; `what` says which one, and where."""
    return UserError(
        f"{what}: its weights are damaged, or overflow in this dtype",
        where=where,
        fix="try dtype: float32; if NaN stays, look at the stage that made the model",
    )


def compute_dtype(name: ComputeType, device: str) -> torch.dtype:
    """The type named, on that type of device."""
    import torch

    from grafts.arithmetic import computing_dtype

    return computing_dtype(torch.bfloat16, device) if name == "auto" else getattr(torch, name)
