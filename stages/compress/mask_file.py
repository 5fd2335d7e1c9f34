"""Where a pruned model keeps its masks. Imported to plan: no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from stages.errors import UserError

FILE: Final = "pruning/masks.safetensors"
"""Below the model's directory, where no reader of weights looks."""


def require_masks(directory: Path) -> Path:
    """The masks of the model in `directory`. Raises UserError when it has none."""
    file = directory / FILE
    if not file.exists():
        raise UserError(
            f"{directory} has no {FILE}: it does not say which weights were pruned",
            where="model",
            fix="give the result of `compress.prune` or `compress.perp`",
        )
    return file
