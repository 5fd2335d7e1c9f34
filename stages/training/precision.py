"""The precisions that training knows. Imported to plan: no torch at the top."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal

if TYPE_CHECKING:
    import torch

Precision = Literal["auto", "bf16", "fp32"]
"""`auto` computes in bf16 where the hardware has instructions for it, else in fp32; models are written in bfloat16."""
DTYPES: Final = {"bf16": "bfloat16", "fp32": "float32"}


def torch_dtype(precision: Precision) -> torch.dtype:
    """The dtype of forward and backward passes on this machine."""
    import torch

    return getattr(torch, DTYPES[settled(precision, gpus=torch.cuda.is_available())])


def written_dtype(precision: Precision) -> torch.dtype:
    """The dtype that trained weights are written in."""
    import torch

    return torch.float32 if precision == "fp32" else torch.bfloat16


def settled(precision: Precision, *, gpus: bool) -> Literal["bf16", "fp32"]:
    """`precision` for training on GPUs or on CPUs like this machine's."""
    if precision != "auto":
        return precision
    import torch

    from grafts.arithmetic import computes_in

    if gpus:  # which the process that asks may not see
        return "bf16" if computes_in(torch.bfloat16, "cuda") else "fp32"
    return "bf16" if computes_in(torch.bfloat16) else "fp32"
