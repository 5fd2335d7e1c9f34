"""How far a model that a stage changed is from the one that it came from, on the stage's held-out text."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from torch import nn

from stages.evaluate.distance import distance
from stages.evaluate.loading import DEVICE
from stages.training.windows import input_windows

if TYPE_CHECKING:
    from stages.stage import Context


def heldout_distance(
    context: Context, parent: Callable[[], nn.Module], child: nn.Module, *, limit: int, batch_size: int
) -> dict[str, float]:
    """Figures of `child` against what `parent` gives, on `limit` windows of input `heldout`; none without it."""
    if context.inputs.get("heldout") is None:
        return {}
    windows_NT = input_windows(context, "heldout", limit)
    pair = [each.to(DEVICE) for each in (parent(), child)]
    return distance(*pair, windows_NT, batch_size=batch_size, progress=context.progress).metrics()
