"""One figure against another, in words: what the table of models and `regraft compare` show. Pure."""

from __future__ import annotations

import math
import re
from typing import Final

SCORE: Final = re.compile(
    r"(?:^|[^a-z])(?:acc|accuracy|exact_match|em|f1|score|recall|generated)(?:$|[^a-z])", re.IGNORECASE
)
"""Metrics that are a share of right answers."""
LOWER_IS_BETTER: Final = frozenset({"perplexity", "bits_per_byte", "byte_perplexity", "bytes"})

NEARLY: Final = 5e-4
"""Relative change below which two figures are told as about equal."""


def change(metric: str, value: float, reference: float) -> str:
    """`value` against `reference`: in points for a score, in percent near it, as a factor far from it; "" if neither
    is a finite number.
    """
    if not (math.isfinite(value) and math.isfinite(reference)):
        return ""
    if value == reference:
        return "="
    if SCORE.search(metric) and 0 <= value <= 1 and 0 <= reference <= 1:
        return f"{_signed(100 * (value - reference), '.1f')} pt"
    if reference == 0 or value / reference <= 0:
        return _signed(value - reference, ".3g")
    factor = value / reference
    if abs(factor - 1) < NEARLY:
        return "≈"
    return f"{_signed(100 * (factor - 1), '.1f')} %" if 0.5 <= factor < 2 else f"× {factor:.3g}"


def verdict(metric: str, value: float, reference: float) -> str:
    """`better` or `worse` where a metric has a good end; else empty."""
    if math.isclose(value, reference, rel_tol=NEARLY) or not (metric in LOWER_IS_BETTER or SCORE.search(metric)):
        return ""
    return "better" if (value < reference) == (metric in LOWER_IS_BETTER) else "worse"


def _signed(value: float, form: str) -> str:
    return f"{value:+{form}}".replace("-", "−")
