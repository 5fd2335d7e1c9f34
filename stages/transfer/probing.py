"""Counterfactual pairs for activation patching: texts of equal length that differ in the words a prediction rests on.

Symmetric token replacement (arXiv 2606.20097, section 4.1): words are exchanged for others of their kind and token
length, so that every position stays and the text stays ordinary. Two capabilities are probed:

retrieval   a needle in a haystack: the value that is asked for is another one (`stages.evaluate.needles`)
general     next-word prediction in real text: the words just before are others. The paper names the group without
            saying what is in it; this is this project's reading

In both texts the predicted tokens are those of the clean one (teacher forcing), so that the token at a position where
the model predicts is the same in both.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from stages.artifacts import Model
from stages.data.tokenizer import open_tokenizer
from stages.errors import UserError
from stages.evaluate.needles import counterfactual, make_probe
from stages.evaluate.needles_scripts import Task
from stages.evaluate.needles_text import Haystack, Pieces

BLANKS: Final = ("Ġ", "▁")
"""How tokenizers write the blank before a word."""

LETTERS: Final = 3
"""A word has at least so many."""

DRAWS: Final = 1000
"""Passages tried before giving up on one with words in the right place."""


@dataclass(frozen=True)
class Pair:
    """A text, its counterfactual, and the tokens to predict."""

    ids: tuple[int, ...]
    """The clean text."""
    other: tuple[int, ...]
    """The counterfactual: as long, and the same from the first predicted token on."""
    targets: tuple[int, ...]
    """Positions of the tokens to predict, ascending, from 1: the same tokens in both texts."""
    wrong: tuple[int, ...] | None
    """For each, the token that the counterfactual calls for; None where only the model can say."""


@dataclass(frozen=True)
class Prober:
    """Makes pairs of about `length` tokens from real text. Everything is a function of the seeds."""

    pieces: Pieces
    haystack: Haystack
    length: int

    def retrieval(self, task: Task, depth: float, num_needles: int, seed: str) -> Iterator[Pair]:
        """Needles at `depth`, one pair after the other."""
        number = 0
        while True:
            one = f"{seed}/{number}"
            probe = make_probe(
                task,
                self.length,
                depth,
                pieces=self.pieces,
                haystack=self.haystack,
                num_needles=num_needles,
                seed=one,
            )
            other = counterfactual(probe, one, pieces=self.pieces)
            targets = tuple(place for answer in probe.answers for place in range(*answer.span))
            yield Pair(
                ids=probe.ids,
                other=other.ids[: probe.prompt_length] + probe.ids[probe.prompt_length :],
                targets=targets,
                wrong=tuple(other.ids[place] for place in targets),
            )
            number += 1

    def general(self, words: Words, reach: int, seed: str) -> Iterator[Pair]:
        """A word in the second half of real text, when the words among the `reach` tokens before it are others.

        The token just before it stays.
        """
        number = 0
        while True:
            yield self._general(words, reach, random.Random(f"{seed}/general/{reach}/{number}"))
            number += 1

    def _general(self, words: Words, reach: int, rng: random.Random) -> Pair:
        first = len(self.pieces.prefix)
        for _ in range(DRAWS):
            ids = self.pieces.prefix + self.haystack.passage(self.length - first, rng).ids
            targets = words.places(ids, self.length // 2, self.length)
            if not targets:
                continue
            target = rng.choice(targets)
            places = words.places(ids, max(first, target - reach), target - 1)
            if places:
                other = words.exchanged(ids, places, avoid=ids[target], rng=rng)
                return Pair(tuple(ids[: target + 1]), tuple(other[: target + 1]), (target,), None)
        raise UserError(
            f"none of {DRAWS} passages of {self.length} tokens has a word with another word up to {reach} tokens "
            "before it",
            where="text",
            fix="give ordinary prose, or a larger reach",
        )


class Words:
    """The tokens of a text that are whole words, or their beginnings: a blank and at least three letters."""

    def __init__(self, model: Model, text: list[int]) -> None:
        tokenizer = open_tokenizer(model.path)
        self._known = {token for token in set(text) if _is_word(tokenizer.id_to_token(token))}
        self._pool = [token for token in text if token in self._known]
        if len(self._known) < 3:
            raise UserError(
                f"the text has {len(self._known)} different words of one token, so none can be exchanged for another",
                where="text",
                fix="give more text, or leave out the capability `general`",
            )

    def places(self, ids: list[int], start: int, stop: int) -> list[int]:
        """Where words stand from `start` up to `stop`."""
        return [place for place in range(max(0, start), min(stop, len(ids))) if ids[place] in self._known]

    def exchanged(self, ids: list[int], places: list[int], *, avoid: int, rng: random.Random) -> list[int]:
        """`ids` with another word at each of `places`, as frequent words of the text are drawn, and never `avoid`."""
        changed = list(ids)
        for place in places:
            while changed[place] in (ids[place], avoid):
                changed[place] = rng.choice(self._pool)
        return changed


def _is_word(token: str) -> bool:
    return token.startswith(BLANKS) and token[1:].isalpha() and len(token) > LETTERS
