"""What reports are asked for: topics over a collection, with what a good report would find and say. Pure.

A topic is drawn from the documents themselves, backwards: a document, others that name its title, and those that name
one of them. The first two are its aspects, named by the question; the last are there to be found by deepening.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from stages.agent.environment.answers import normalise, phrases_in
from stages.agent.environment.collection import COMMON, Collection, Document
from stages.agent.questions.facts import plain_title, sentences

Link = Literal["mention", "search"]
SEARCHED: Final = 20
"""Documents looked at for aspects of a topic."""
MOST_TERMS: Final = 3
_TERM: Final = re.compile(r"\b(?:1\d{3}|20[0-2]\d|[A-Z][\w'’-]{3,}(?:\s[A-Z][\w'’-]+)*)\b")


@dataclass(frozen=True)
class Item:
    """One entry of a topic's checklist: a document to find, and what a report that used it would say."""

    document: int
    title: str
    terms: tuple[str, ...]
    weight: float = 1.0
    of: int = 0
    """The document of the aspect that it deepens; 0 for an aspect."""


@dataclass(frozen=True)
class Topic:
    """What to report on, and the checklist of a good report."""

    id: str
    query: str
    items: tuple[Item, ...]

    @property
    def aspects(self) -> tuple[Item, ...]:
        """What the question names."""
        return tuple(item for item in self.items if not item.of)

    @property
    def golden(self) -> frozenset[int]:
        """The documents that a good report uses."""
        return frozenset(item.document for item in self.items)

    def deeper(self, document: int) -> tuple[Item, ...]:
        """What deepens the aspect of a document."""
        return tuple(item for item in self.items if item.of == document)

    def about(self, title: str) -> Item | None:
        """The item that a section of that title is about: of equal titles, up to normalisation."""
        wanted = normalise(title)
        return next((item for item in self.items if normalise(item.title) == wanted), None)


@dataclass(frozen=True)
class Drafter:
    """Draws topics from a collection."""

    collection: Collection
    aspects: int
    """Of a topic, at least 2."""
    deeper: int
    """Documents that deepen an aspect at most."""
    link: Link
    documents: int
    """Documents that a search of a writer brings: what deepens an aspect is among them."""

    def topics(self, rng: random.Random) -> Iterator[Topic]:
        """Topics in random order, no document in two of them."""
        used = set[str]()
        for number in rng.sample(range(1, len(self.collection) + 1), len(self.collection)):
            document = self.collection.document(number)
            if normalise(document.title) not in used and (topic := self._topic(document, used)):
                used |= {normalise(item.title) for item in topic.items}
                yield topic

    def _topic(self, document: Document, used: set[str]) -> Topic | None:
        """The topic that begins with a document; None where it has too few links, or none of them goes on."""
        taken = {*used, normalise(document.title)}
        aspects = [document, *self._linked(document, taken, self.aspects - 1, SEARCHED)]
        taken |= {normalise(aspect.title) for aspect in aspects}
        items = [_item(aspect, 2.0) for aspect in aspects]
        for aspect in aspects:
            found = self._linked(aspect, taken, self.deeper, self.documents)
            taken |= {normalise(one.title) for one in found}
            items += [_item(one, 1.0, aspect.id) for one in found]
        if len(aspects) < self.aspects or len(items) < len(aspects) + 2 or not all(item.terms for item in items):
            return None
        query = _listed([aspect.title for aspect in aspects])
        return Topic(f"report-{hashlib.sha256(query.encode()).hexdigest()[:12]}", query, tuple(items))

    def _linked(self, document: Document, taken: set[str], most: int, searched: int) -> list[Document]:
        """Documents of other titles that name this one's, best first; with `search`, that a search for it finds."""
        name, found = plain_title(document.title), list[Document]()
        seen = set(taken)
        for hit in self.collection.search(name, searched):
            other = self.collection.document(hit.id)
            if normalise(other.title) in seen or len(found) == most:
                continue
            if self.link == "search" or phrases_in(other.text, [normalise(name)]):
                found.append(other)
                seen.add(normalise(other.title))
        return found


def terms(document: Document) -> tuple[str, ...]:
    """What a text that used the document would hardly fail to say: years and names of its first sentences, else words.

    What its title says already tells nothing.
    """
    text = " ".join(sentences(document.text)[:3])
    names = [found[0] for found in _TERM.finditer(text)]
    names += [word for word in re.findall(r"\b[^\W\d_]{5,}\b", text) if word.lower() not in COMMON]
    told = dict.fromkeys(map(normalise, names))
    known = {"", *COMMON, *phrases_in(document.title, told)}
    return tuple(name for name in told if name not in known)[:MOST_TERMS]


def _item(document: Document, weight: float, of: int = 0) -> Item:
    return Item(document.id, document.title, terms(document), weight, of)


def _listed(titles: Sequence[str]) -> str:
    return f"{', '.join(titles[:-1])} and {titles[-1]}"
