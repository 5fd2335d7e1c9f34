"""JSON for other programs: plain values as text that every reader takes."""

from __future__ import annotations

import json
import math
from typing import Any


def json_text(value: Any, indent: int = 2) -> str:
    """`value` as indented JSON. It has no NaN and no infinities: they are written as text."""
    return json.dumps(_finite(value), indent=indent, ensure_ascii=False, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
