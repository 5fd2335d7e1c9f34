"""Float32 master weights, without which small learning rates do nothing.

An update of relative size below 2^-9 leaves a bfloat16 weight where it was: at a learning rate of 1e-5 that is nearly
every update, and a proxy would be ranked by which of its weights happen to round.
"""

from __future__ import annotations

from typing import Any

from stages.errors import UserError


def require_float32_masters(optimizer: Any) -> None:
    """Raise UserError unless `optimizer` (torch's, or DeepSpeed's around it) updates float32 tensors only."""
    import torch

    from grafts.arithmetic import dtype_name

    inner = getattr(optimizer, "optimizer", optimizer)
    found = {tensor.dtype for group in inner.param_groups for tensor in group["params"]}
    other = sorted(dtype_name(dtype) for dtype in found - {torch.float32})
    if other:
        raise UserError(
            f"the optimiser updates {', '.join(other)} weights, a proxy needs float32 master weights: its updates are "
            "smaller than such weights can hold",
            fix="set `precision: fp32`, or `bf16`, under which DeepSpeed keeps float32 masters",
        )
