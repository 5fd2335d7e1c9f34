"""How many positions' losses are computed at once, where the logits of all of them are there."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from torch import Tensor

CPU_LOGITS: Final = 2**20
"""4 MiB of float32, which stay in the cache. In chunks of 50 MiB, which the allocator gets from the system anew each
time, the loss over a vocabulary of 49152 takes three times as long."""
DEVICE_LOGITS: Final = 2**24
"""64 MiB of float32: enough to keep a GPU busy between kernels."""


def scale(logits_PV: Tensor, factor: Tensor) -> None:
    """Multiply in place, in float32: in bf16 the factor itself would be rounded."""
    for part in chunks(logits_PV):
        logits_PV[part] = logits_PV[part].float() * factor


def chunks(logits_PV: Tensor) -> Iterator[slice]:
    """All positions of logits [P, V], in slices of at least one; an empty slice where there are none."""
    num_positions, vocab_size = logits_PV.shape
    size = max(1, (CPU_LOGITS if logits_PV.device.type == "cpu" else DEVICE_LOGITS) // vocab_size)
    for start in range(0, max(1, num_positions), size):
        yield slice(start, min(start + size, num_positions))
