"""MinHash signatures of documents, and which documents are near-duplicates of each other (Broder, 1997).

The share of equal places in two signatures estimates the Jaccard similarity of the documents' sets of word n-grams,
with a standard deviation of sqrt(J (1 - J) / NUM_HASHES): 0.035 at 0.8. Pairs that might be alike are found by
banding: documents whose signatures agree in all rows of one band meet; each meeting is then checked on the whole
signatures, so that a false alarm of the banding drops nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

import numpy as np

from stages.data.shingles import hash_ngrams, hash_words, scramble, words_of

NUM_HASHES: Final = 128
SHINGLE_WORDS: Final = 5
"""Words of an n-gram, as in FineWeb (arXiv 2406.17557)."""
BAND_RECALL: Final = 0.99
"""Least chance that the banding brings together two documents at the threshold."""
MOST_GROUPS: Final = 16
"""Groups within one bucket that a document is compared with: huge buckets stay linear."""
_BLOCK: Final = 4096
_keys = np.random.Generator(np.random.PCG64(0x5EED)).integers(0, 2**64, (2, NUM_HASHES), np.uint64)
_FACTORS, _TERMS = _keys[0] | np.uint64(1), _keys[1]


def shingles(text: str) -> np.ndarray:
    """The set of hashed word 5-grams of `text`, uint64; of a shorter text, one of all its words.

    Where a text has no words, what stands between white space counts as words.
    """
    words = hash_words(words_of(text) or text.split())
    return np.unique(hash_ngrams(words, min(SHINGLE_WORDS, max(1, len(words)))))


def signature(shingles_S: np.ndarray) -> np.ndarray:
    """The least of the S values under each of `NUM_HASHES` hash functions, uint32 [NUM_HASHES]."""
    least = np.full(NUM_HASHES, 2**32 - 1, np.uint64)
    for start in range(0, len(shingles_S), _BLOCK):
        block = shingles_S[start : start + _BLOCK, None]
        least = np.minimum(least, ((block * _FACTORS + _TERMS) >> np.uint64(32)).min(0))
    return least.astype(np.uint32)


def band_rows(similarity: float) -> int:
    """Rows of a band: the most at which documents of that Jaccard similarity still meet with `BAND_RECALL`."""
    chances = {rows: 1 - (1 - similarity**rows) ** (NUM_HASHES // rows) for rows in range(1, NUM_HASHES + 1)}
    return max((rows for rows, chance in chances.items() if chance >= BAND_RECALL), default=1)


def band_keys(signatures_NH: np.ndarray, rows: int, band: int) -> np.ndarray:
    """A hash of one band of each signature, uint64 [N]; there are `NUM_HASHES // rows` bands."""
    part_NR = signatures_NH[:, band * rows : (band + 1) * rows].astype(np.uint64)
    keys = np.zeros(len(part_NR), np.uint64)
    for row in range(rows):
        keys = scramble(keys + part_NR[:, row] + np.uint64(row + 1))
    return keys


def near_duplicates(
    keys_of_band: Iterator[np.ndarray], signature_of: Callable[[int], np.ndarray], num: int, similarity: float
) -> np.ndarray:
    """For each of `num` documents the first one of its group, int64 [num]: itself where it has no earlier twin.

    `keys_of_band` gives uint64 [num] for each band in turn. Groups are what estimated similarities of at least
    `similarity` connect.
    """
    parents = np.arange(num)
    for keys in keys_of_band:
        for bucket in _buckets(keys):
            _join(bucket, parents, signature_of, similarity)
    return np.array([_root(parents, index) for index in range(num)], np.int64)


def _buckets(keys: np.ndarray) -> Iterator[list[int]]:
    """The documents that share a key, each bucket in ascending order."""
    order = np.argsort(keys, kind="stable")
    sorted_keys = keys[order]
    starts = np.flatnonzero(np.r_[True, sorted_keys[1:] != sorted_keys[:-1]]) if len(keys) else np.zeros(0, int)
    ends = np.r_[starts[1:], len(keys)]
    for start, end in zip(starts[ends - starts > 1], ends[ends - starts > 1], strict=True):
        yield order[start:end].tolist()


def _join(bucket: list[int], parents: np.ndarray, signature_of: Callable[[int], np.ndarray], similarity: float) -> None:
    groups: dict[int, np.ndarray] = {}
    for index in bucket:
        root = _root(parents, index)
        if root in groups:
            continue
        own = signature_of(index)
        for other, theirs in groups.items():
            if np.count_nonzero(own == theirs) >= similarity * NUM_HASHES:
                other_root = _root(parents, other)
                parents[max(root, other_root)] = min(root, other_root)
                break
        else:
            if len(groups) < MOST_GROUPS:
                groups[root] = own


def _root(parents: np.ndarray, index: int) -> int:
    while parents[index] != index:
        parents[index] = parents[parents[index]]
        index = parents[index]
    return int(index)
