"""Behaviours: short reusable instructions that an agent finds in its own work (Metacognitive Reuse, arXiv 2509.13237).

Parsing, leak checks, deduplication and retrieval; nothing here runs a model. Similarity is the cosine of TF-IDF vectors
of stemless lower-case words: deterministic, and enough for one-line instructions.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final, Literal

from stages.agent.conversation.messages import TAGS, Message
from stages.agent.environment.answers import normalise, phrases_in
from stages.agent.environment.base import Task
from stages.data.marks import MARKS

Rejection = Literal["name", "tag", "long", "number", "answer", "copy", "duplicate"]
"""Why a proposed behaviour does not enter the handbook, see `REJECTIONS`."""
REJECTIONS: Final[Mapping[Rejection, str]] = {
    "name": "its name is not behavior_<words>",
    "tag": "it holds a tag of the message format",
    "long": "it is empty or too long",
    "number": "it holds a number of the question or the answer",
    "answer": "it says the answer",
    "copy": "it copies words of the question",
    "duplicate": "the handbook says so already",
}
_WORD: Final = re.compile(rf"[^\W_](?:[^\W_]|[{MARKS}])*")
NAME: Final = re.compile(rf"behavior(?:_{_WORD.pattern})+")
LONGEST: Final = 300
"""Characters of an instruction."""
COPIED_WORDS: Final = 5
"""As many words of the question in a row are a copy."""
_ENTRY: Final = re.compile(r"^\W*(behavior_[^\s:*`]+)[*`]*\s*[:：]\s*(.*)$", re.IGNORECASE)
_TAG: Final = re.compile(rf"</?(?:{'|'.join((*TAGS, 'tool_response'))})>")
_NUMBER: Final = re.compile(r"\d+(?:[.,]\d+)*")


@dataclass(frozen=True)
class Behaviour:
    """One entry: a name, and what to do, in one line."""

    name: str
    instruction: str

    @property
    def text(self) -> str:
        """The entry as a model reads it."""
        return f"{self.name}: {self.instruction}"


def parse_behaviours(written: str) -> list[Behaviour]:
    """The entries among the lines of what a model wrote, their names normalised; other lines are no entries."""
    found = (_ENTRY.match(line.strip()) for line in written.splitlines())
    return [Behaviour(_name(match[1]), " ".join(match[2].split())) for match in found if match]


def rejection(behaviour: Behaviour, task: Task) -> Rejection | None:
    """What is wrong with a behaviour found in the work on `task`; None when it may be kept.

    It must not lead anyone who is asked the same again to the answer: no number of question or answer, not the answer
    itself, no copy of the question.
    """
    instruction = behaviour.instruction
    if not NAME.fullmatch(behaviour.name):
        return "name"
    if _TAG.search(instruction):
        return "tag"
    if not instruction or len(instruction) > LONGEST:
        return "long"
    said = f"{behaviour.name.replace('_', ' ')} {instruction}"
    known = {number for text in (task.question, *task.answers) for number in _NUMBER.findall(text)}
    if known & set(_NUMBER.findall(said)):
        return "number"
    if phrases_in(said, map(normalise, task.answers)):
        return "answer"
    return "copy" if _shares_words(said, task.question, COPIED_WORDS) else None


@dataclass(frozen=True)
class Handbook:
    """Behaviours with distinct names, and the way to those that fit a text."""

    entries: tuple[Behaviour, ...] = ()

    def retrieve(self, text: str, most: int) -> list[Behaviour]:
        """The `most` entries most alike to `text`, or all there are; best first, ties in the order of names."""
        query = self._vector(text)
        ranked = sorted(
            zip(self.entries, self._vectors, strict=True), key=lambda pair: (-_cosine(query, pair[1]), pair[0].name)
        )
        return [entry for entry, _ in ranked[:most]]

    def says(self, behaviour: Behaviour, threshold: float) -> bool:
        """Whether an entry has the same name, or an instruction at least as alike as `threshold`."""
        vector = self._vector(behaviour.instruction)
        return any(entry.name == behaviour.name for entry in self.entries) or any(
            _cosine(vector, self._vector(entry.instruction)) >= threshold for entry in self.entries
        )

    def with_entry(self, behaviour: Behaviour) -> Handbook:
        """The handbook and one more."""
        return Handbook((*self.entries, behaviour))

    @cached_property
    def _weights(self) -> Mapping[str, float]:
        counts = Counter(word for entry in self.entries for word in set(_words(entry.text)))
        return {word: math.log(1 + len(self.entries) / count) for word, count in counts.items()}

    @cached_property
    def _vectors(self) -> Sequence[Mapping[str, float]]:
        return [self._vector(entry.text) for entry in self.entries]

    def _vector(self, text: str) -> Mapping[str, float]:
        rare = math.log(1 + max(1, len(self.entries)))
        return {word: n * self._weights.get(word, rare) for word, n in Counter(_words(text)).items()}


def with_behaviours(messages: Sequence[Message], behaviours: Iterable[Behaviour]) -> tuple[Message, ...]:
    """A prompt whose first message ends with the behaviours; without any, the prompt as it is."""
    lines = [f"- {behaviour.text}" for behaviour in behaviours]
    if not lines or not messages:
        return tuple(messages)
    first = messages[0]
    told = "\n".join([first.content, "", "Behaviours that have helped before:", *lines])
    return Message(first.role, told), *messages[1:]


def _name(written: str) -> str:
    """Lower case, words joined by single underscores."""
    return "_".join(_WORD.findall(written.lower().replace("-", "_")))


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def _shares_words(text: str, other: str, num: int) -> bool:
    words, others = _words(text), _words(other)
    rows = {tuple(others[start : start + num]) for start in range(len(others) - num + 1)}
    return any(tuple(words[start : start + num]) in rows for start in range(len(words) - num + 1))


def _cosine(left: Mapping[str, float], right: Mapping[str, float]) -> float:
    dot = math.fsum(value * right[word] for word, value in left.items() if word in right)
    size = math.sqrt(math.fsum(v * v for v in left.values())) * math.sqrt(math.fsum(v * v for v in right.values()))
    return dot / size if size else 0.0
