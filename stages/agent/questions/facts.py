"""What a document says of its subject in so many words: facts with one short answer, found by patterns of English.

A fact is read from a sentence that begins with the document's title: "Alien is a 1979 film directed by Ridley Scott"
gives who directed it. Sentences with a word blanked out need no patterns and work for any collection.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from stages.agent.environment.answers import normalise
from stages.agent.environment.collection import Document
from stages.data.marks import MARKS

BLANK: Final = "____"
_PAUSE: Final = re.compile(r"(?<=[.!?।])\s+(?=\S)|(?<=[。！？])(?![。！？”’」』）])\s*(?=\S)")
"""Where a sentence may end: behind a mark and a space, or in scripts without spaces behind the mark alone."""
_SAID: Final = re.compile(rf"[^\W_]|[){MARKS}”\"']")
_WORD: Final = r"(?:(?:[A-Z]\.)+|[A-Z][\w'’-]+)"
_NAME: Final = rf"{_WORD}(?:\s(?:(?:of|de|von|van|the|and|&)\s)?{_WORD}){{0,4}}"
_MONTH: Final = "January|February|March|April|May|June|July|August|September|October|November|December"
_DAY: Final = rf"(?:(?:\d{{1,2}}\s)?(?:{_MONTH})\s(?:\d{{1,2}},?\s)?)?"
_YEAR: Final = r"(?P<answer>1\d{3}|20[0-2]\d)\b"
_BY: Final = {
    "directed": "directed",
    "written": "wrote",
    "created": "created",
    "produced": "produced",
    "composed": "composed",
    "founded": "founded",
    "developed": "developed",
    "published": "published",
    "designed": "designed",
    "performed": "performed",
    "recorded": "recorded",
    "owned": "owns",
    "built": "built",
    "invented": "invented",
    "manufactured": "makes",
}
_DATED: Final = "released|published|founded|established|opened|launched|introduced|completed|premiered|formed"
_PLACED: Final = "located|situated|based|headquartered|set|filmed|held"
_PATTERNS: Final = (
    ("who", re.compile(rf"\b(?P<verb>{'|'.join(_BY)})\sby\s(?P<answer>{_NAME})")),
    ("year", re.compile(rf"\b(?P<verb>{_DATED})\b[^.;]{{0,30}}?\s(?:in|on)\s{_DAY}{_YEAR}")),
    ("year", re.compile(rf"\bis\san?\s{_YEAR}[^.;]*?\b(?:film|album|song|single|novel|game|drama|comedy)\b")),
    ("where", re.compile(rf"\b(?P<verb>{_PLACED})\sin\s(?:the\s)?(?P<answer>{_NAME}(?:,\s{_NAME})?)")),
)
_ASK: Final = {
    "who": "Who {verb} {subject}?",
    "year": "In which year was {subject} {verb}?",
    "where": "Where is {subject} {verb}?",
}


@dataclass(frozen=True)
class Fact:
    """One answer to one question about the subject of a document."""

    document: Document
    asks: str
    """`who`, `year` or `where`."""
    verb: str
    answer: str

    def question(self, subject: str) -> str:
        """The question about `subject`, which stands for the document's title."""
        verb = _BY[self.verb] if self.asks == "who" else self.verb
        return _ASK[self.asks].format(verb=verb, subject=subject)

    @property
    def relation(self) -> tuple[str, str]:
        """Facts of one relation about one subject answer the same question."""
        return self.asks, self.verb


@dataclass(frozen=True)
class Cloze:
    """A sentence of a document with one part blanked out."""

    document: Document
    sentence: str
    """With `BLANK` in it, cut to some words around."""
    answer: str

    @property
    def words(self) -> str:
        """The sentence without its blank and marks, as a query."""
        return " ".join(self.sentence.replace(BLANK, " ").replace("…", " ").split())


def plain_title(title: str) -> str:
    """A title without what stands in brackets to tell it from others."""
    return re.sub(r"\s*\([^)]*\)$", "", title)


def sentences(text: str) -> list[str]:
    """The sentences of a text, roughly."""
    return [sentence.strip() for line in text.splitlines() for sentence in _sentences(line) if sentence]


def _sentences(line: str) -> Iterator[str]:
    start = 0
    for pause in _PAUSE.finditer(line):
        if _is_end(line[max(0, pause.start() - 2) : pause.start()], line[pause.end()]):
            yield line[start : pause.start()]
            start = pause.end()
    yield line[start:]


def _is_end(before: str, after: str) -> bool:
    """Whether a sentence ends with the two characters `before` a pause and begins with the one `after` it.

    It ends with no capital ("J. Weld" goes on), and begins with no small letter; scripts without either may do both.
    """
    last, mark = before[:-1], before[-1]
    if mark not in ".!?":
        return True
    ends = _SAID.fullmatch(last) is not None and not last.isupper()
    return ends and (after in '“"`' or (after.isalpha() and not after.islower()))


def facts(document: Document) -> Iterator[Fact]:
    """What the document says of its own subject."""
    subject = normalise(plain_title(document.title))
    for sentence in sentences(document.text):
        if subject and normalise(sentence).startswith(subject):
            yield from _matches(document, sentence)


def _matches(document: Document, sentence: str) -> Iterator[Fact]:
    for asks, pattern in _PATTERNS:
        for found in pattern.finditer(sentence):
            answer = found["answer"].removesuffix("'s").rstrip(".,'’-")
            if not _is_adjective(answer, sentence[found.end("answer") :]):
                yield Fact(document, asks, found.groupdict().get("verb", "released"), answer)


def mention(document: Document, name: str, around: int) -> Cloze | None:
    """The first sentence that says `name` once, with it blanked out and at most `around` words on either side.

    A name that goes on before or after (Scarlett in Scarlett Johansson) is another.
    """
    for sentence in sentences(document.text):
        before, found, after = sentence.partition(name)
        if found and name not in after and not _part_of_name(before, after):
            return Cloze(document, _window(before, after, around), name)
    return None


def word_cloze(document: Document, around: int, rng: random.Random) -> Cloze | None:
    """One sentence with one longer word blanked out, drawn by `rng`; None when no sentence is long enough."""
    fit = [sentence for sentence in sentences(document.text) if len(sentence.split()) >= 6]
    if not fit:
        return None
    sentence = rng.choice(fit)
    words = [found for found in re.finditer(r"\b[^\W\d_]{4,}\b", sentence) if sentence.count(found[0]) == 1]
    if not words:
        return None
    word = rng.choice(words)
    return Cloze(document, _window(sentence[: word.start()], sentence[word.end() :], around), word[0])


def _part_of_name(before: str, after: str) -> bool:
    """Whether what stands between is part of a longer word or name; a sentence's first word may have a capital."""
    *earlier, last = before.split() or [""]
    capital_before = bool(earlier) and last[:1].isupper() and before[-1:].isspace()
    capital_after = re.match(r"['’-]|\s[A-Z]", after) is not None
    return before[-1:].isalnum() or after[:1].isalnum() or capital_before or capital_after


def _is_adjective(name: str, rest: str) -> bool:
    """Whether a word is more likely to describe what follows: the "American" of "written by American author …"."""
    return name[0].isalpha() and " " not in name and re.match(r"\s[a-z]", rest) is not None


def _window(before: str, after: str, around: int) -> str:
    """The blank between at most `around` words on either side."""
    left, right = re.findall(r"\S+\s*", before), re.findall(r"\s*\S+", after)
    head = "… " * (len(left) > around) + "".join(left[max(0, len(left) - around) :])
    return head + BLANK + "".join(right[:around]) + " …" * (len(right) > around)
