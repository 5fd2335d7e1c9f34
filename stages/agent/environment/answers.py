"""Whether an answer is right: exact match and token F1 after a normalisation like that of SQuAD (arXiv 1606.05250).

Here a space takes the place of punctuation, so that "maker's" are two words, where SQuAD joins them.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from typing import Final

from stages.data.marks import MARKS

_ARTICLES: Final = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION: Final = re.compile(rf"[^\w\s{MARKS}]|_")


def normalise(text: str) -> str:
    """Lower case, one form of Unicode, no punctuation, no articles, single spaces."""
    plain = _PUNCTUATION.sub(" ", _lower(text))
    return " ".join(_ARTICLES.sub(" ", plain).split())


def phrases_in(text: str, phrases: Iterable[str]) -> list[str]:
    """Those of `phrases`, which are normalised already, that `text` says in whole words."""
    said = f" {normalise(text)} "
    return [phrase for phrase in phrases if phrase and f" {phrase} " in said]


def exact_match(answer: str, answers: Iterable[str]) -> bool:
    """Whether `answer` is one of `answers`, up to normalisation."""
    found = _compared(answer)
    return bool(found) and any(found == _compared(right) for right in answers)


def f1(answer: str, answers: Iterable[str]) -> float:
    """Harmonic mean of the shares of words that `answer` and the nearest of `answers` have in common, in [0, 1]."""
    return max((_f1(_compared(answer).split(), _compared(right).split()) for right in answers), default=0.0)


def _compared(text: str) -> str:
    """`text` normalised; one that is nothing else, such as "A" or "+", keeps its articles and punctuation."""
    return normalise(text) or " ".join(_lower(text).split())


def _lower(text: str) -> str:
    return unicodedata.normalize("NFKC", text).lower()


def _f1(found: list[str], right: list[str]) -> float:
    common = sum((Counter(found) & Counter(right)).values())
    return 2 * common / (len(found) + len(right)) if common else 0.0
