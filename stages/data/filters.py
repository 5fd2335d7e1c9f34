"""Quality filters by the names of their papers: rules, each a measure of the document and a bound.

A document goes through the rules in order; the first that does not hold is the reason for which it is dropped, under
the name `filter.rule`. Thresholds are the papers' own and may be set by that name.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

from stages.data import measures
from stages.data.measures import Parts
from stages.errors import UserError, listing
from stages.source.locate import nearest

COMPARE: Final[Mapping[str, Callable[[float, float], bool]]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
}


@dataclass(frozen=True)
class Rule:
    """A document stays while `measure(parts)` compares so with `bound`."""

    name: str
    measure: Callable[[Parts], float]
    keep: str
    """`>=`, `<=`, `>` or `<`."""
    bound: float
    of_page: bool = False
    """Whether it looks at the document before `c4_lines` takes lines out."""

    def holds(self, value: float) -> bool:
        """Whether a document with this value stays."""
        return COMPARE[self.keep](value, self.bound)


def _gopher_quality() -> list[Rule]:
    """Rae et al., 2112.11446, A1.1."""
    return [
        Rule("min_words", measures.num_words, ">=", 50),
        Rule("max_words", measures.num_words, "<=", 100_000),
        Rule("min_mean_word_length", measures.mean_word_length, ">=", 3),
        Rule("max_mean_word_length", measures.mean_word_length, "<=", 10),
        Rule("max_hashes_per_word", measures.hashes_per_word, "<=", 0.1),
        Rule("max_ellipses_per_word", measures.ellipses_per_word, "<=", 0.1),
        Rule("max_bullet_lines", measures.bullet_lines, "<=", 0.9),
        Rule("max_ellipsis_lines", measures.ellipsis_lines, "<=", 0.3),
        Rule("min_alphabetic_words", measures.alphabetic_words, ">=", 0.8),
        Rule("min_stop_words", measures.num_stop_words, ">=", 2),
    ]


def _gopher_repetition() -> list[Rule]:
    """Rae et al., 2112.11446, table A1."""
    tops = {2: 0.20, 3: 0.18, 4: 0.16}
    repeats = {5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.10}
    return [
        Rule("max_duplicate_lines", measures.duplicate_lines, "<=", 0.30),
        Rule("max_duplicate_paragraphs", measures.duplicate_paragraphs, "<=", 0.30),
        Rule("max_duplicate_line_characters", measures.duplicate_line_characters, "<=", 0.20),
        Rule("max_duplicate_paragraph_characters", measures.duplicate_paragraph_characters, "<=", 0.20),
        *(
            Rule(f"max_top_{n}_gram", partial(measures.top_ngram_characters, n=n), "<=", bound)
            for n, bound in tops.items()
        ),
        *(
            Rule(f"max_duplicate_{n}_grams", partial(measures.duplicate_ngram_characters, n=n), "<=", bound)
            for n, bound in repeats.items()
        ),
    ]


def _c4() -> list[Rule]:
    """Raffel et al., 1910.10683, 2.2; sentences are those that `c4_lines` leaves. Its bad words: `word_list.py`."""
    return [
        Rule("max_lorem_ipsum", measures.lorem_ipsum, "<=", 0, of_page=True),
        Rule("max_curly_brackets", measures.curly_brackets, "<=", 0, of_page=True),
        Rule("min_sentences", measures.num_sentences, ">=", 5),
    ]


def _fineweb() -> list[Rule]:
    """Penedo et al., 2406.17557, 3.6: their own, which follow Gopher's and C4's."""
    return [
        Rule("min_punctuated_lines", measures.punctuated_lines, ">", 0.12),
        Rule("max_duplicate_line_characters", measures.duplicate_line_characters, "<", 0.1),
        Rule("max_short_lines", measures.short_lines, "<", 0.67),
    ]


_RULES: Final[Mapping[str, Callable[[], list[Rule]]]] = {
    "gopher_quality": _gopher_quality,
    "gopher_repetition": _gopher_repetition,
    "c4": _c4,
    "fineweb": _fineweb,
}


def rules_of(filters: Iterable[str], thresholds: Mapping[str, float]) -> list[Rule]:
    """The rules of `filters` in order, by full name, with the bounds of `thresholds` in place of the papers'.

    Raises UserError for a threshold of no rule of theirs.
    """
    rules = [replace(rule, name=f"{name}.{rule.name}") for name in filters for rule in _RULES[name]()]
    known = [rule.name for rule in rules]
    for name in thresholds:
        if name not in known:
            raise UserError(
                f"thresholds: there is no rule {name!r}{nearest(name, known)}",
                fix=f"rules of the filters given: {listing(known, limit=40)}",
            )
    return [replace(rule, bound=thresholds.get(rule.name, rule.bound)) for rule in rules]


def loosest(filters: Iterable[str]) -> dict[str, float]:
    """Thresholds that no document breaks, for every rule of `filters`."""
    return {rule.name: -1e9 if rule.keep in (">=", ">") else 1e9 for rule in rules_of(filters, {})}


def first_broken(rules: Iterable[Rule], text: str) -> tuple[Rule, float] | None:
    """The first rule that does not hold for `text`, with the value that breaks it."""
    parts = Parts(text)
    for rule in rules:
        value = rule.measure(parts)
        if not rule.holds(value):
            return rule, value
    return None


_CITATION: Final = re.compile(r"\[\d*\]|\[edit\]|\[citation needed\]")
_POLICY: Final = ("terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies", "use cookies")
_LINE_WORDS: Final = 3


def c4_lines(text: str) -> str:
    """The lines that C4 keeps: three words or more, a terminal mark at the end, no JavaScript, no policy notice.

    Citation marks are taken out first. 1910.10683, 2.2; the policy notices are of its code.
    """
    lines = (_CITATION.sub("", line).strip() for line in text.splitlines())
    return "\n".join(line for line in lines if _is_prose(line))


def _is_prose(line: str) -> bool:
    low = line.lower()
    return (
        line.endswith((".", "!", "?", '"', "”"))
        and not line.endswith("...")
        and len(line.split()) >= _LINE_WORDS
        and "javascript" not in low
        and not any(phrase in low for phrase in _POLICY)
    )
