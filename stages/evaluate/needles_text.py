"""What probes are built from: pieces of text as tokens, and passages of real text with their sentence ends."""

from __future__ import annotations

import random
import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from stages.artifacts import Dataset, Model
from stages.data.reading import read_documents
from stages.data.tokenizer import open_tokenizer
from stages.errors import UserError

ANCHOR = "a"
"""A piece is encoded behind this letter and cut off it, so that its tokens are those it has inside a text."""

SENTENCE_END = re.compile(r"[.!?][\"')\]’”]*(?=\s)")


class Pieces:
    """A model's tokenizer for texts that are joined as tokens."""

    def __init__(self, model: Model) -> None:
        self._tokenizer = open_tokenizer(model.path)
        self._anchor = self._encode(ANCHOR)
        whole = self._tokenizer.encode(ANCHOR).ids
        self.prefix: list[int] = whole[: _find(self._anchor, whole)]
        """What the tokenizer puts before every text, such as a token for its beginning."""

    def first(self, text: str) -> list[int]:
        """Ids of `text` at the beginning, after the prefix."""
        return self.prefix + self._encode(text)

    def following(self, text: str) -> list[int]:
        """Ids of `text` after other text. It has to begin with a blank, a line end or a sign."""
        ids = self._encode(ANCHOR + text)
        if ids[: len(self._anchor)] != self._anchor:
            raise UserError(
                f"the tokenizer joins {text!r} to the letter before it, so pieces of text cannot be put together",
                fix="use a model whose tokenizer splits words at blanks",
            )
        return ids[len(self._anchor) :]

    def value(self, value: str) -> tuple[list[int], list[int]]:
        """Ids of a blank that stands alone before `value` (none where it is part of its first token), and of it."""
        ids = self.following(f" {value}")
        blanks = next(place for place, token in enumerate(ids) if self.decode([token]).strip())
        return ids[:blanks], ids[blanks:]

    def document(self, text: str) -> tuple[list[int], list[int]]:
        """Ids of `text`, and the places between them where a sentence has ended."""
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        starts = [start for start, _ in encoding.offsets]
        ends = []
        for match in SENTENCE_END.finditer(text):
            place = bisect_left(starts, match.end())
            if place < len(starts) and starts[place] - match.end() <= 1:  # the blank may count to either token
                ends.append(place)
        return encoding.ids, ends

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`, special tokens included."""
        return self._tokenizer.decode(list(ids), skip_special_tokens=False)

    def _encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False).ids


@dataclass(frozen=True)
class Passage:
    """Real text that ends where a sentence does."""

    ids: list[int]
    gaps: list[int]
    """Places where something can stand between sentences, ascending: 0, each sentence end, `len(ids)`."""

    def gap(self, depth: float) -> int:
        """The gap nearest to the share `depth` of the passage."""
        wanted = depth * len(self.ids)
        return min(self.gaps, key=lambda gap: (abs(gap - wanted), gap))


class Haystack:
    """Documents one after the other, with a blank line between."""

    def __init__(self, texts: Iterable[str], pieces: Pieces, least: int) -> None:
        """Reads documents until there are `least` tokens, or no more documents."""
        self.ids: list[int] = []
        self.ends: list[int] = []
        for text in texts:
            ids, ends = pieces.document(("\n\n" if self.ids else "") + text.strip())
            self.ends += [len(self.ids) + end for end in ends]
            self.ids += ids
            self.ends.append(len(self.ids))
            if len(self.ids) >= least:
                break

    def passage(self, length: int, rng: random.Random) -> Passage:
        """`length` tokens up to a sentence end drawn by `rng`. Raises UserError when there are not as many."""
        possible = self.ends[bisect_left(self.ends, length) :]
        if not possible:
            raise UserError(
                f"the text has {self.ends[-1] if self.ends else 0} tokens up to its last sentence end, the probe needs "
                f"{length} of them",
                fix="give more text, or shorter lengths",
            )
        stop = rng.choice(possible)
        start = stop - length
        inside = self.ends[bisect_right(self.ends, start) : bisect_right(self.ends, stop)]
        return Passage(self.ids[start:stop], [0, *(end - start for end in inside)])


def texts_of(dataset: Dataset) -> Iterator[str]:
    """The documents of a `text` dataset in their order, without those of blanks alone."""
    return (text for text in read_documents(dataset.shards) if text.strip())


def _find(part: list[int], whole: list[int]) -> int:
    places = range(len(whole) - len(part) + 1)
    return next((place for place in places if whole[place : place + len(part)] == part), 0)
