"""The names of figures that many stages report, apart from what computes them: plans read these without torch."""

from __future__ import annotations

from typing import Final

DISTANCE: Final = (
    "kl_to_parent",
    "kl_to_parent_p99",
    "perplexity_ratio",
    "top1_agreement",
    "parent_perplexity",
    "child_perplexity",
)
"""Of the distance to the parent (`stages.evaluate.distance`)."""
