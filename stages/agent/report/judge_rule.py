"""The judge by rule, for want of a model.

A rule cannot tell insight. What each criterion measures stands in its function: a stand-in that can be counted, and
that a policy raises by finding, citing and saying what a topic's checklist holds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

from stages.agent.environment.answers import f1, normalise, phrases_in
from stages.agent.questions.facts import sentences
from stages.agent.report.judge import Criterion, Draft, Judge, Plan, Text, Work
from stages.agent.report.topics import Item
from stages.agent.report.view import citations, without_citations

ALIKE: Final = 0.6
"""Token F1 from which two titles say the same."""
_WORDS: Final = range(4, 41)
"""Words of a sentence that reads well."""


class RuleJudge(Judge):
    """Counts: the same work always gets the same rating."""

    def rate(self, work: Work, criteria: Sequence[Criterion]) -> dict[Criterion, float]:
        """1 + 4 times the share that `RULES` tells for each criterion."""
        return {criterion: 1 + 4 * RULES[criterion](work) for criterion in criteria}


def said(item: Item, text: str) -> float:
    """The share of an item's terms that a text says."""
    return len(phrases_in(text, item.terms)) / len(item.terms) if item.terms else 0.0


def _guidance(plan: Plan) -> float:
    """Of what should be named, the share that titles name."""
    return _mean(any(alike(item.title, title) for title in plan.titles) for item in plan.wanted)


def _hierarchy(plan: Plan) -> float:
    """Of the titles, the share that no section says already."""
    there = [section.title for _, section in plan.state.walk()]
    return _mean(not any(alike(title, other) for other in there) for title in plan.titles)


def _logic(plan: Plan) -> float:
    """Of the titles, the share that are short and unlike their siblings."""
    return _mean(
        len(title.split()) <= 12 and not any(alike(title, other) for other in plan.titles if other is not title)
        for title in plan.titles
    )


def _relevance(text: Text) -> float:
    """Of the documents cited, the share that the topic asks for."""
    return _mean(document in text.topic.golden for document in citations(text.text))


def _coverage(text: Text) -> float:
    """Of what the documents found for the section have for the checklist, the share that is said."""
    found = {one.id for one in text.evidence}
    return _mean(said(item, text.text) for item in text.topic.items if item.document in found)


def _depth(text: Text) -> float:
    """Sentences, up to three of them."""
    return min(len(sentences(without_citations(text.text))), 3) / 3


def _novelty(text: Text) -> float:
    """Of the sentences, the share that the report does not say already."""
    before = {normalise(one) for _, section in text.state.walk() for one in _sentences(section.text)}
    return _mean(normalise(one) not in before for one in _sentences(text.text))


def _comprehensiveness(draft: Draft) -> float:
    """The checklist, by weight: of the documents that are cited, what is said of them."""
    text = _whole(draft)
    cited = citations(text)
    total = math.fsum(item.weight for item in draft.topic.items)
    return math.fsum(item.weight * said(item, text) for item in draft.topic.items if item.document in cited) / total


def _insight(draft: Draft) -> float:
    """Of the sections written, the share that bring a document of the checklist that no earlier one has."""
    seen = set[int]()
    brings: list[bool] = []
    for _, section in draft.state.walk():
        if section.text:
            new = (set(citations(section.text)) & draft.topic.golden) - seen
            brings.append(bool(new))
            seen |= new
    return _mean(brings)


def _instruction(draft: Draft) -> float:
    """Of the aspects that the question names, the share that have a section with a text."""
    titles = [section.title for _, section in draft.state.walk() if section.text]
    return _mean(any(alike(aspect.title, title) for title in titles) for aspect in draft.topic.aspects)


def _readability(draft: Draft) -> float:
    """Of the sentences, the share that have 4 to 40 words and stand there for the first time."""
    told = _sentences(_whole(draft))
    first = {normalise(one): place for place, one in reversed(list(enumerate(told)))}
    return _mean(len(one.split()) in _WORDS and first[normalise(one)] == place for place, one in enumerate(told))


RULES: Final[Mapping[Criterion, Callable[..., float]]] = {
    "guidance": _guidance,
    "hierarchy": _hierarchy,
    "logic": _logic,
    "relevance": _relevance,
    "coverage": _coverage,
    "depth": _depth,
    "novelty": _novelty,
    "comprehensiveness": _comprehensiveness,
    "insight": _insight,
    "instruction": _instruction,
    "readability": _readability,
}


def alike(title: str, other: str) -> bool:
    """Whether two titles say the same."""
    return f1(title, (other,)) >= ALIKE


def _whole(draft: Draft) -> str:
    return "\n".join(section.text for _, section in draft.state.walk() if section.text)


def _sentences(text: str) -> list[str]:
    return sentences(without_citations(text)) if text else []


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return math.fsum(found) / len(found) if found else 0.0
