"""Questions over a collection, drafted from facts and sentences, each with the path that answers it.

    fact     Who directed “Alien (film)”?                                          search, visit
    cloze    Which word is missing: “… the small crew of the ____ …”?               search, visit
    bridge   Something is missing: “… based on the 1979 film ____, whose …”.        search, visit; search, visit
             Who directed it?

A draft is only a claim: `verify` tells what is wrong with it, by using the tools as a model would.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final, Literal

from stages.agent.conversation.messages import ToolCall
from stages.agent.environment.answers import normalise, phrases_in
from stages.agent.environment.base import Task, Tool
from stages.agent.environment.collection import Collection, Document
from stages.agent.questions.facts import BLANK, Cloze, Fact, facts, mention, plain_title, word_cloze

Kind = Literal["fact", "cloze", "bridge"]
Rejection = Literal["told", "not-found", "not-shown", "shortcut", "ambiguous", "repeated"]
REJECTIONS: Final[Mapping[Rejection, str]] = {
    "told": "the question says its answer",
    "not-found": "searching as the solution does finds not the document",
    "not-shown": "the document as shown does not say the answer",
    "shortcut": "an earlier document on the path says the answer already",
    "ambiguous": "another document fits the sentence with another word",
    "repeated": "the question is asked already",
}
MOST_MENTIONS: Final = 8
"""Bridges to one subject, so that a famous one is not half of the questions."""


@dataclass(frozen=True)
class Hop:
    """A step of a path: what to search for, the document to read, and what to think before and on finding it."""

    query: str
    document: Document
    search: str
    visit: str


@dataclass(frozen=True)
class Draft:
    """A question and how to answer it; `conclusion` is what to think before answering."""

    kind: Kind
    question: str
    answer: str
    path: tuple[Hop, ...]
    conclusion: str
    cloze: Cloze | None = None

    @property
    def subject(self) -> str:
        """The title of the document with the answer: what is split into training and held-out questions."""
        return self.path[-1].document.title

    def task(self) -> Task:
        """The draft as a task."""
        calls: list[ToolCall] = []
        thoughts: list[str] = []
        for hop in self.path:
            calls += [ToolCall("search", {"query": hop.query}), ToolCall("visit", {"id": hop.document.id})]
            thoughts += [hop.search, hop.visit]
        name = f"{self.kind}-{hashlib.sha256(self.question.encode()).hexdigest()[:12]}"
        return Task(name, self.question, (self.answer,), tuple(calls), (*thoughts, self.conclusion), self.kind)


class Drafter:
    """Drafts questions over the documents of a collection, `around` words of a sentence on either side of a blank."""

    def __init__(self, collection: Collection, around: int, rng: random.Random) -> None:
        self.documents = list(collection.documents())
        self.around, self.rng = around, rng
        self._facts = _settled(self.documents)

    def drafts(self, kind: Kind) -> Iterator[Draft]:
        """Questions of one kind, in an order drawn by the generator."""
        return {"fact": self._fact_drafts, "cloze": self._cloze_drafts, "bridge": self._bridge_drafts}[kind]()

    def _fact_drafts(self) -> Iterator[Draft]:
        for fact in self._shuffled(self._facts):
            title = fact.document.title
            hop = Hop(title, fact.document, "I look for the title.", f"Document {fact.document.id} is about it.")
            yield Draft("fact", fact.question(f"“{title}”"), fact.answer, (hop,), _told(fact))

    def _cloze_drafts(self) -> Iterator[Draft]:
        for document in self._shuffled(self.documents):
            if cloze := word_cloze(document, self.around, self.rng):
                question = f"Which word is missing: “{cloze.sentence}”?"
                conclusion = f"What is missing is {cloze.answer}."
                yield Draft("cloze", question, cloze.answer, (_sentence_hop(cloze),), conclusion, cloze)

    def _bridge_drafts(self) -> Iterator[Draft]:
        named = _named(self._facts)
        mentions = self._mentions(named)
        pairs = [(fact, cloze) for name in mentions for fact in named[name] for cloze in mentions[name]]
        for fact, cloze in self._shuffled(pairs):
            question = f"Something is missing: “{cloze.sentence}”. {fact.question('it')}"
            found = f"Document {fact.document.id} is about it."
            hop = Hop(cloze.answer, fact.document, f"What is missing is {cloze.answer}.", found)
            yield Draft("bridge", question, fact.answer, (_sentence_hop(cloze), hop), _told(fact), cloze)

    def _mentions(self, named: Mapping[str, list[Fact]]) -> dict[str, list[Cloze]]:
        """Sentences of other documents that name a subject, by its name."""
        if not named:
            return {}
        longest_first = sorted(named, key=lambda name: (-len(name), name))
        pattern = re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, longest_first))})(?!\w)")
        found: dict[str, list[Cloze]] = defaultdict(list)
        for document in self.documents:
            for name in dict.fromkeys(pattern.findall(document.text)):
                foreign = name not in document.title and len(found[name]) < MOST_MENTIONS
                if foreign and (cloze := mention(document, name, self.around)):
                    found[name].append(cloze)
        return found

    def _shuffled(self, items: list[Fact] | list[Document] | list[tuple[Fact, Cloze]]) -> list:
        return self.rng.sample(items, len(items))


def verify(draft: Draft, tools: Mapping[str, Tool]) -> Rejection | None:
    """What is wrong with a draft, as a model with these tools would find; None when it stands."""
    answer = normalise(draft.answer)
    if not answer or phrases_in(draft.question, [answer]):
        return "told"
    for number, hop in enumerate(draft.path, start=1):
        results = tools["search"](query=hop.query)
        if f"\n[{hop.document.id}] " not in "\n" + results:
            return "not-found"
        shown = tools["visit"](id=hop.document.id)
        last = number == len(draft.path)
        wanted = answer if last else normalise(draft.path[number].query)
        if not phrases_in(shown, [wanted]):
            return "not-shown"
        if not last and phrases_in(shown, [answer]):
            return "shortcut"
    return "ambiguous" if draft.cloze and _fits_elsewhere(draft.cloze, tools) else None


def _fits_elsewhere(cloze: Cloze, tools: Mapping[str, Tool]) -> bool:
    """Whether another document that the sentence finds has it with something else in the blank."""
    parts = [normalise(part) for part in cloze.sentence.split(BLANK)]
    for number in re.findall(r"^\[(\d+)\] ", tools["search"](query=cloze.words), re.MULTILINE):
        if int(number) != cloze.document.id:
            text = normalise(tools["visit"](id=number))
            found = re.search(rf"{re.escape(parts[0])}(.{{1,80}}?){re.escape(parts[1])}", text)
            if found and found[1].strip() != normalise(cloze.answer):
                return True
    return False


def _settled(documents: list[Document]) -> list[Fact]:
    """The first fact of each relation, where all documents of one title agree on its answer."""
    found: dict[tuple[str, tuple[str, str]], list[Fact]] = defaultdict(list)
    for document in documents:
        for fact in facts(document):
            found[document.title, fact.relation].append(fact)
    return [same[0] for same in found.values() if len({normalise(fact.answer) for fact in same}) == 1]


def _named(settled: list[Fact]) -> dict[str, list[Fact]]:
    """Facts by the name of their subject, where it is telling and no title needs brackets to tell it from others."""
    found: dict[str, list[Fact]] = defaultdict(list)
    for fact in settled:
        found[plain_title(fact.document.title)].append(fact)
    return {
        name: same
        for name, same in found.items()
        if {fact.document.title for fact in same} == {name} and (" " in name or len(name) >= 8)
    }


def _sentence_hop(cloze: Cloze) -> Hop:
    return Hop(cloze.words, cloze.document, "I look for the sentence.", f"Document {cloze.document.id} has it.")


def _told(fact: Fact) -> str:
    return f"It says {fact.verb} {'by' if fact.asks == 'who' else 'in'} {fact.answer}."
