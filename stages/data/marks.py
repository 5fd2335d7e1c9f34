"""Combining marks, such as the vowel signs of Hindi, Tamil and Thai: part of a word, yet no word character to `re`."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from itertools import groupby
from typing import Final

_LAST: Final = 0x1F000
"""Beyond it are variation selectors alone."""


def _is_mark(code: int) -> bool:
    """Whether it is a mark that says something: variation selectors (U+FE00 to U+FE0F) choose a glyph."""
    return unicodedata.category(chr(code)) in ("Mn", "Mc") and not 0xFE00 <= code <= 0xFE0F


def _ranges() -> Iterator[str]:
    codes = [code for code in range(_LAST) if _is_mark(code)]
    for _, run in groupby(enumerate(codes), lambda numbered: numbered[1] - numbered[0]):
        first, *rest = [chr(code) for _, code in run]
        yield f"{first}-{rest[-1]}" if rest else first


MARKS: Final = "".join(_ranges())
"""For use within the brackets of a regular expression."""
