"""Which documents are held out: decided by what a document is made of, in whatever order.

A hash of the text would put a copy with its words shuffled, its lines filtered or its spaces collapsed on either side,
and a model trained on the copy would know the held-out original. So the hash is of how often each byte occurs among
the UTF-8 bytes of its characters.
"""

from __future__ import annotations

import hashlib
import unicodedata

import numpy as np


def split_key(text: str) -> int:
    """64 bits that depend on how often each byte occurs in the UTF-8 of `text`, and on nothing else.

    White space, case and the Unicode form do not count. Texts of the same characters have the same key, so they are on
    the same side, whether one is made of the other or not.
    """
    plain = "".join(unicodedata.normalize("NFKC", text).casefold().split())
    counts = np.bincount(np.frombuffer(plain.encode(), np.uint8), minlength=256)
    return int.from_bytes(hashlib.blake2b(counts.astype("<u4").tobytes(), digest_size=8, key=b"split").digest(), "big")


def held_out(keys_N: np.ndarray, fraction: float) -> np.ndarray:
    """Whether documents with these keys (uint64 [N]) are on the held-out side, bool [N].

    What is held out at one fraction is at every larger one.
    """
    return keys_N < fraction * 2**64
