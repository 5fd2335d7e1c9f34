"""Words and their n-grams as 64-bit hashes: what near-duplicates, repetition and contamination are all measured on.

A word is a run of letters with their marks, digits and underscores, in lower case; a character of a script without
spaces (Chinese, Japanese) is a word of its own. Hashes depend on the words alone: not on the process, the machine or
the corpus.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from typing import Final

import numpy as np

from stages.data.marks import MARKS

_UNSPACED: Final = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
WORD: Final = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]++(?:[{MARKS}]++[^\W{_UNSPACED}]*+)*+")
REMEMBERED_WORDS: Final = 1_000_000
"""Words whose hashes are kept; then they are forgotten, so that memory does not grow with the corpus."""
_BASE: Final = np.uint64(0x9E3779B97F4A7C15)


class _Hashes(dict[str, int]):
    """Hash of each word met."""

    def __missing__(self, word: str) -> int:
        if len(self) >= REMEMBERED_WORDS:
            self.clear()
        self[word] = value = int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "little")
        return value


_hashes = _Hashes()


def words_of(text: str) -> list[str]:
    """The words of `text`, in lower case and in order."""
    return WORD.findall(text.lower())


def hash_words(words: Sequence[str]) -> np.ndarray:
    """Hashes of `words`, uint64 [W]."""
    return np.fromiter(map(_hashes.__getitem__, words), np.uint64, len(words))


def hash_ngrams(words_W: np.ndarray, n: int) -> np.ndarray:
    """Hashes of the W - n + 1 runs of `n` words, uint64, in order; none when there are fewer words."""
    count = max(0, len(words_W) - n + 1)
    hashes = np.zeros(count, np.uint64)
    for offset in range(n):
        hashes = hashes * _BASE + words_W[offset : offset + count]
    return scramble(hashes)


def scramble(values: np.ndarray) -> np.ndarray:
    """uint64 values as others, one to one, in which every bit depends on every bit (the finaliser of splitmix64)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
