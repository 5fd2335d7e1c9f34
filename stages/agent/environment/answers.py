"""Whether an answer is right: exact match and token F1 after the normalisation of SQuAD (arXiv 1606.05250)."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from typing import Final

_ARTICLES: Final = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION: Final = re.compile(r"[^\w\s]|_")


def normalise(text: str) -> str:
    """Lower case, one form of Unicode, no punctuation, no articles, single spaces."""
    plain = _PUNCTUATION.sub(" ", unicodedata.normalize("NFKC", text).lower())
    return " ".join(_ARTICLES.sub(" ", plain).split())


def exact_match(answer: str, answers: Iterable[str]) -> bool:
    """Whether `answer` is one of `answers`, up to normalisation."""
    found = normalise(answer)
    return bool(found) and any(found == normalise(right) for right in answers)


def f1(answer: str, answers: Iterable[str]) -> float:
    """Harmonic mean of the shares of words that `answer` and the nearest of `answers` have in common, in [0, 1]."""
    return max((_f1(normalise(answer).split(), normalise(right).split()) for right in answers), default=0.0)


def _f1(found: list[str], right: list[str]) -> float:
    common = sum((Counter(found) & Counter(right)).values())
    return 2 * common / (len(found) + len(right)) if common else 0.0
