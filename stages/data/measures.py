"""What quality filters measure of a document: one small function for each figure, of the text alone.

Words are what stands between white space; characters of a text are counted without white space where a share of them is
told. Every function takes `Parts`, and an empty document measures 0.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from typing import Final

import numpy as np

from stages.data.shingles import hash_ngrams, hash_words

STOP_WORDS: Final = frozenset({"the", "be", "to", "of", "and", "that", "have", "with"})
"""Of Gopher (arXiv 2112.11446, A1.1)."""
BULLETS: Final = ("•", "‣", "▪", "◦", "*", "-", "–")
ELLIPSES: Final = ("...", "…")
TERMINAL: Final = (".", "!", "?", '"', "'", "”", "’", "。", "！", "？", "…", ":", ";")
SHORT_LINE: Final = 30
"""Characters of a line below which FineWeb calls it short."""
_SENTENCE_END: Final = re.compile(r"[.!?。！？]+[\"'”’)\]]*(?=\s|$)")


class Parts:
    """A text in the parts that measures need, each made once."""

    def __init__(self, text: str) -> None:
        self.text = text
        self._repeated_below = 2**31

    @cached_property
    def words(self) -> list[str]:
        """What white space separates."""
        return self.text.split()

    @cached_property
    def lines(self) -> list[str]:
        """Lines with something on them, without the blanks around them."""
        return [line.strip() for line in self.text.splitlines() if line.strip()]

    @cached_property
    def paragraphs(self) -> list[str]:
        """What empty lines separate."""
        return [part.strip() for part in re.split(r"\n\s*\n", self.text) if part.strip()]

    @cached_property
    def word_lengths(self) -> np.ndarray:
        """Characters of each word, int64 [W]."""
        return np.fromiter(map(len, self.words), np.int64, len(self.words))

    @cached_property
    def word_hashes(self) -> np.ndarray:
        """Hash of each word, uint64 [W]."""
        return hash_words(self.words)

    def repeated_runs(self, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
        """Of the distinct runs of `n` words: where each begins first, which of them begins at each word, and how often
        each occurs. None when none occurs twice: then no longer one does either, and nobody has to look.
        """
        if n < self._repeated_below:
            hashes = hash_ngrams(self.word_hashes, n)
            _, first, inverse, counts = np.unique(hashes, return_index=True, return_inverse=True, return_counts=True)
            if len(counts) < len(hashes):
                return first, inverse, counts
            self._repeated_below = n
        return None


def num_words(parts: Parts) -> float:
    """Words."""
    return len(parts.words)


def mean_word_length(parts: Parts) -> float:
    """Characters of a word, on average."""
    return _share(int(parts.word_lengths.sum()), len(parts.words))


def hashes_per_word(parts: Parts) -> float:
    """Hash signs for each word."""
    return _share(parts.text.count("#"), len(parts.words))


def ellipses_per_word(parts: Parts) -> float:
    """Ellipses for each word."""
    return _share(sum(map(parts.text.count, ELLIPSES)), len(parts.words))


def bullet_lines(parts: Parts) -> float:
    """Share of the lines that begin with a bullet."""
    return _share(sum(line.startswith(BULLETS) for line in parts.lines), len(parts.lines))


def ellipsis_lines(parts: Parts) -> float:
    """Share of the lines that end with an ellipsis."""
    return _share(sum(line.endswith(ELLIPSES) for line in parts.lines), len(parts.lines))


def alphabetic_words(parts: Parts) -> float:
    """Share of the words that have a letter in them."""
    return _share(sum(any(map(str.isalpha, word)) for word in parts.words), len(parts.words))


def num_stop_words(parts: Parts) -> float:
    """How many of the stop words occur."""
    return len(STOP_WORDS.intersection(word.lower().strip(".,;:!?\"'()") for word in parts.words))


def duplicate_lines(parts: Parts) -> float:
    """Share of the lines that repeat an earlier one."""
    return _share(len(parts.lines) - len(set(parts.lines)), len(parts.lines))


def duplicate_paragraphs(parts: Parts) -> float:
    """Share of the paragraphs that repeat an earlier one."""
    return _share(len(parts.paragraphs) - len(set(parts.paragraphs)), len(parts.paragraphs))


def duplicate_line_characters(parts: Parts) -> float:
    """Share of the characters of lines that are in lines which repeat an earlier one."""
    return _repeated_characters(parts.lines)


def duplicate_paragraph_characters(parts: Parts) -> float:
    """Share of the characters of paragraphs that are in paragraphs which repeat an earlier one."""
    return _repeated_characters(parts.paragraphs)


def top_ngram_characters(parts: Parts, n: int) -> float:
    """Characters of all occurrences of the most frequent run of `n` words for each character of words.

    0 when no run occurs twice; of equally frequent runs the longest counts. Occurrences that overlap count each.
    """
    found = parts.repeated_runs(n)
    if found is None:
        return 0.0
    first, _, counts = found
    most = counts.max()
    ends = np.r_[0, parts.word_lengths.cumsum()]
    longest = (ends[first + n] - ends[first])[counts == most].max()
    return _share(int(longest * most), int(ends[-1]))


def duplicate_ngram_characters(parts: Parts, n: int) -> float:
    """Share of the characters of words that are in a run of `n` words which occurs more than once.

    Characters in several such runs count once.
    """
    found = parts.repeated_runs(n)
    if found is None:
        return 0.0
    _, inverse, counts = found
    repeated = counts[inverse] > 1
    steps = np.zeros(len(parts.words) + 1, np.int64)
    steps[: len(repeated)] += repeated
    steps[n : n + len(repeated)] -= repeated
    return _share(int(parts.word_lengths[steps.cumsum()[:-1] > 0].sum()), int(parts.word_lengths.sum()))


def punctuated_lines(parts: Parts) -> float:
    """Share of the lines that end with a punctuation mark."""
    return _share(sum(line.endswith(TERMINAL) for line in parts.lines), len(parts.lines))


def short_lines(parts: Parts) -> float:
    """Share of the lines with fewer than 30 characters."""
    return _share(sum(len(line) < SHORT_LINE for line in parts.lines), len(parts.lines))


def curly_brackets(parts: Parts) -> float:
    """Opening curly brackets."""
    return parts.text.count("{")


def lorem_ipsum(parts: Parts) -> float:
    """How often it says lorem ipsum."""
    return parts.text.lower().count("lorem ipsum")


def num_sentences(parts: Parts) -> float:
    """Marks that end a sentence, before white space or the end."""
    return sum(1 for _ in _SENTENCE_END.finditer(parts.text))


def _repeated_characters(pieces: Sequence[str]) -> float:
    counts = Counter(pieces)
    repeated = sum((count - 1) * len(piece) for piece, count in counts.items())
    return _share(repeated, sum(map(len, pieces)))


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
