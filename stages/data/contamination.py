"""Evaluation text in a corpus: documents that share a run of n words with it (GPT-3, arXiv 2005.14165, app. C)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from stages.data.reading import read_texts
from stages.data.shingles import hash_ngrams, hash_words, words_of


class EvaluationNgrams:
    """The hashed word n-grams of evaluation texts, uint64 in ascending order, in a file that workers map."""

    def __init__(self, file: Path, n: int) -> None:
        self.n = n
        self._hashes = np.load(file, mmap_mode="r")

    def first_shared(self, text: str) -> str | None:
        """The first run of n words of `text` that an evaluation text has too, or None."""
        words = words_of(text)
        hashes = hash_ngrams(hash_words(words), self.n)
        if not len(hashes) or not len(self._hashes):
            return None
        found = np.searchsorted(self._hashes, hashes)
        shared = self._hashes[np.minimum(found, len(self._hashes) - 1)] == hashes
        return " ".join(words[(start := int(shared.argmax())) : start + self.n]) if shared.any() else None


@lru_cache(maxsize=4)
def evaluation_ngrams(file: Path, n: int, changed: int) -> EvaluationNgrams:  # noqa: ARG001, a file made anew is another
    """The n-grams in `file`, opened once in a process; `changed` is its time of change."""
    return EvaluationNgrams(file, n)


@dataclass
class Collected:
    """How many evaluation texts were read, and how many cannot be found anywhere."""

    read: int = 0
    short: int = 0
    """Of fewer than n words."""
    unreadable: int = 0
    """Rows that are no text."""


def collect_ngrams(shards: Iterable[Path], n: int, file: Path) -> Collected:
    """Write the n-grams of the texts in `shards` into `file`."""
    found, parts = Collected(), [np.zeros(0, np.uint64)]
    for row in (row for shard in shards for rows in read_texts(shard) for row in rows):
        found.unreadable += bool(row.fault)
        if row.text is None:
            continue
        hashes = hash_ngrams(hash_words(words_of(row.text)), n)
        found.read, found.short = found.read + 1, found.short + (len(hashes) == 0)
        parts.append(np.unique(hashes))
    np.save(file, np.unique(np.concatenate(parts)))
    return found
