"""HALO's score of whole layers, the baseline that heads are compared with (arXiv 2601.22156).

Each layer is converted alone, and the model measured twice: rt, its mean retrieval score, and cs, its mean
common-sense score, both in per cent. A layer stays full attention for what retrieval loses without it, relative to
what common sense loses:

    s_l = min(50, (max rt - rt_l) / (max cs - cs_l + 1e-10))

Two weaknesses of it are known and kept. The best layer by cs has a denominator of 0, so it reaches the cap and is kept
whatever its retrieval; and a layer whose conversion destroys common sense is *less* likely to be kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

CAP: Final = 50.0
EPSILON: Final = 1e-10


def halo_scores(retrieval: Sequence[float], commonsense: Sequence[float]) -> list[float]:
    """s_l of each layer, from rt_l and cs_l in per cent: what the model with only that layer converted reaches."""
    best_rt, best_cs = max(retrieval), max(commonsense)
    return [min(CAP, (best_rt - rt) / (best_cs - cs + EPSILON)) for rt, cs in zip(retrieval, commonsense, strict=True)]
