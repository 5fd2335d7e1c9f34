"""The distance of a model to its parent, measured on what its directory holds."""

from __future__ import annotations

from pathlib import Path

import torch

from grafts.loader import load_model, stored_dtype
from stages.artifacts import Dataset
from stages.data.windows import TokenWindows
from stages.evaluate.distance import distance


def written_distance(parent: Path, child: Path, heldout: Dataset, scratch: Path) -> dict[str, float]:
    """KL and perplexity of the bfloat16 model in `child`, computed in float32, on 8 windows."""
    assert stored_dtype(child) == torch.bfloat16
    pair = (load_model(path, dtype=torch.float32) for path in (parent, child))
    found = distance(*pair, TokenWindows(heldout, scratch / "windows").tensor(8)).metrics()
    return {name: found[name] for name in ("kl_to_parent", "child_perplexity")}
