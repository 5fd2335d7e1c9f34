"""What single actions of a report are worth, by rules that can be checked and a judge (arXiv 2602.06540). In [0, 1].

planning    initialize, expand     form, language, the judge's guidance, hierarchy and logic
retrieval   search                 recall of the documents that the section needs
writing     write                  form; judge, faithfulness and citations, a third each
decision    expand or terminate    whether it is what the best draft did
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from stages.agent.environment.answers import normalise, phrases_in
from stages.agent.environment.collection import COMMON
from stages.agent.report.actions import Action, Expand, Initialize, Terminate
from stages.agent.report.judge import PLAN, TEXT, Judge, Plan, Text
from stages.agent.report.state import Evidence, State
from stages.agent.report.topics import Topic
from stages.agent.report.view import citations, without_citations

Skill = Literal["planning", "retrieval", "writing", "decision"]
_CLAIM: Final = re.compile(r"\b(?:\d[\d.,]*|[A-Z][\w'’-]+)\b")


@dataclass(frozen=True)
class TextRules:
    """The form of a section's text; the paper asks for 100 to 2000 tokens and at most 12 citations."""

    fewest: int = 15
    """Words at least."""
    most: int = 400
    """Words at most."""
    citations: int = 12
    """Documents cited at most."""

    def hold(self, text: str) -> bool:
        """Whether a text is of that form."""
        words = len(without_citations(text).split())
        return self.fewest <= words <= self.most and len(citations(text)) <= self.citations


def planning(topic: Topic, state: State, action: Initialize | Expand, judge: Judge) -> float:
    """What titles are worth: 0 in another language than the question's, else as the judge says.

    That there are neither too few nor too many is the state machine's business: such a plan is refused.
    """
    titles, parent = (action.sections, "") if isinstance(action, Initialize) else (action.subsections, "")
    if isinstance(action, Expand):
        parent = dict(state.walk())[action.section].title
    if not all(same_script(title, topic.query) for title in titles):
        return 0.0
    return judge.value(Plan(topic, state, titles, parent), PLAN)


def retrieval(found: Sequence[Evidence], needed: Collection[int]) -> float:
    """Recall: the share of the documents `needed` (at least one) that were found."""
    return len({one.id for one in found} & set(needed)) / len(needed)


def writing(topic: Topic, state: State, text: str, judge: Judge, rules: TextRules) -> float:
    """What a section's text is worth: 0 in another form, else the mean of judge, faithfulness and citation F1."""
    work = Text(topic, state, text)
    if not rules.hold(text) or not same_script(text, topic.query):
        return 0.0
    cited = citation_f1(text, [one.id for one in work.evidence], topic.golden)
    return (judge.value(work, TEXT) + faithfulness(text, work.evidence) + cited) / 3


def decision(action: Action, best: Action) -> float:
    """1 for what the pruned trajectory did, terminating or expanding that very section; else 0."""
    if isinstance(best, Expand):
        return float(isinstance(action, Expand) and action.section == best.section)
    return float(isinstance(action, Terminate))


def citation_f1(text: str, found: Collection[int], golden: Collection[int]) -> float:
    """F1 of the documents cited, against those found that the topic asks for; 0 if one cited was not found.

    Where none of what was found is asked for, 1 for citing nothing, else 0.
    """
    cited, wanted = set(citations(text)), set(found) & set(golden)
    if cited - set(found):
        return 0.0
    if not wanted:
        return float(not cited)
    return 2 * len(cited & wanted) / (len(cited) + len(wanted))


def faithfulness(text: str, found: Sequence[Evidence]) -> float:
    """Of the names and numbers in a text, the share that a document it cites has; 1 without any."""
    cited = set(citations(text))
    known = " ".join(f"{one.title} {one.text}" for one in found if one.id in cited)
    claims = {normalise(claim) for claim in _CLAIM.findall(without_citations(text))} - {"", *COMMON}
    return len(phrases_in(known, claims)) / len(claims) if claims else 1.0


def same_script(text: str, query: str) -> bool:
    """Whether most letters of two texts are of one script (LATIN, CYRILLIC, CJK…); true where one has no letters."""
    one, other = _script(text), _script(query)
    return not one or not other or one == other


def _script(text: str) -> str:
    scripts = [unicodedata.name(letter, "").partition(" ")[0] for letter in text if letter.isalpha()]
    return max(set(scripts), key=lambda script: (scripts.count(script), script)) if scripts else ""
