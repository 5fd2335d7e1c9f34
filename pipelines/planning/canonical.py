"""Canonical JSON and the digests made from it.

Two values are the same identity exactly when their canonical JSON is the same text. The encoder raises on whatever has
no single such text (infinities, sets, objects) instead of falling back to `str`, which would hide a changing address or
a path in a key.
"""

from __future__ import annotations

import hashlib
import json
import math
from typing import Any, Final

DIGITS: Final = 64
"""Hex digits of a digest."""


def canonical(value: Any) -> str:
    """`value` as JSON with sorted keys and no spaces. Raises TypeError for what cannot be encoded canonically."""
    _refuse_ambiguous(value, "value")
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def digest(value: Any) -> str:
    """SHA-256 of the canonical JSON of `value`, 64 hex digits."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()


def is_digest(text: str) -> bool:
    """Whether `text` is such a digest, and no version or name."""
    return len(text) == DIGITS and set(text) <= set("0123456789abcdef")


def _refuse_ambiguous(value: Any, where: str) -> None:
    kind = type(value)
    if kind is str or kind is int or kind is bool or value is None:
        return
    if kind is float:
        if not math.isfinite(value):
            raise TypeError(f"{where} is {value}: only finite numbers can be part of an identity")
    elif kind is list or kind is tuple:
        for index, item in enumerate(value):
            _refuse_ambiguous(item, f"{where}[{index}]")
    elif kind is dict:
        for key, item in value.items():
            if type(key) is not str:
                raise TypeError(f"{where} has the key {key!r} ({type(key).__name__}): keys must be text")
            _refuse_ambiguous(item, f"{where}.{key}")
    else:
        raise TypeError(f"{where} is a {kind.__module__}.{kind.__qualname__}: give plain JSON values in an identity")
