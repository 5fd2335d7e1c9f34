"""Measures against naive references, rules at their bounds, and what each paper's filter drops."""

from __future__ import annotations

from collections import Counter
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.data import measures
from stages.data.filters import c4_lines, first_broken, loosest, rules_of
from stages.data.measures import Parts
from stages.errors import UserError
from tests.tiny import tiny_text

ALL = ("gopher_quality", "gopher_repetition", "c4", "fineweb")
PROSE = (
    "The house by the river had stood empty for years, and nobody in the village could remember who had lived there. "
    "Children told stories of lights in its windows. One morning in spring a family from the city moved in with two "
    "dogs, a piano and more books than anyone had seen. They painted the door blue. By summer the garden was full of "
    "people who had come to be near the music, and the stories of the lights were forgotten."
)
WORDS = st.lists(st.sampled_from(["a", "bb", "ccc", "dd", "e"]), max_size=40)


def runs(words: list[str], n: int) -> list[tuple[str, ...]]:
    return [tuple(words[start : start + n]) for start in range(len(words) - n + 1)]


def naive_top(words: list[str], n: int) -> float:
    counts = Counter(runs(words, n))
    most = max(counts.values(), default=0)
    if most < 2:
        return 0.0
    longest = max(len("".join(run)) for run, count in counts.items() if count == most)
    return most * longest / len("".join(words))


def naive_repeated(words: list[str], n: int) -> float:
    counts, covered = Counter(runs(words, n)), set()
    for start, run in enumerate(runs(words, n)):
        if counts[run] > 1:
            covered.update(range(start, start + n))
    return sum(len(words[index]) for index in covered) / max(1, len("".join(words)))


def naive_repeated_lines(lines: list[str]) -> tuple[float, float]:
    seen, repeated = set[str](), []
    for line in lines:
        if line in seen:
            repeated.append(line)
        seen.add(line)
    return len(repeated) / max(1, len(lines)), len("".join(repeated)) / max(1, len("".join(lines)))


@given(WORDS, st.integers(2, 6))
@settings(deadline=None)
def test_repeated_runs_equal_the_naive_count(words: list[str], n: int):
    parts = Parts(" ".join(words))
    assert measures.top_ngram_characters(parts, n) == pytest.approx(naive_top(words, n))
    assert measures.duplicate_ngram_characters(parts, n) == pytest.approx(naive_repeated(words, n))


@given(st.lists(st.sampled_from(["one", "two words", "three", ""]), max_size=12))
def test_repeated_lines_and_paragraphs_equal_the_naive_count(pieces: list[str]):
    kept = [piece for piece in pieces if piece]
    for joint, count, characters in (
        ("\n", measures.duplicate_lines, measures.duplicate_line_characters),
        ("\n\n", measures.duplicate_paragraphs, measures.duplicate_paragraph_characters),
    ):
        parts = Parts(joint.join(kept))
        assert (count(parts), characters(parts)) == pytest.approx(naive_repeated_lines(kept))


def test_measures_of_one_text_by_hand():
    parts = Parts("- One # two...\n- the end…\n\nA line that is longer than thirty characters {1}.\nThe to 42")
    told = {
        measures.num_words: 19,
        measures.hashes_per_word: 1 / 19,
        measures.ellipses_per_word: 2 / 19,
        measures.bullet_lines: 2 / 4,
        measures.ellipsis_lines: 2 / 4,
        measures.alphabetic_words: 14 / 19,
        measures.num_stop_words: 3,
        measures.punctuated_lines: 3 / 4,
        measures.short_lines: 3 / 4,
        measures.curly_brackets: 1,
        measures.num_sentences: 2,
    }
    for measure, expected in told.items():
        assert measure(parts) == pytest.approx(expected), measure.__name__


def test_an_empty_document_measures_nothing_and_divides_by_nothing():
    for rule in rules_of(ALL, {}):
        assert rule.measure(Parts("")) == 0, rule.name


@pytest.mark.parametrize("name", ALL)
def test_prose_passes_every_filter(name: str):
    assert first_broken(rules_of([name], {}), PROSE) is None


@pytest.mark.parametrize(
    ("rule", "text"),
    {
        "gopher_quality.min_words": "Too short to be of any use.",
        "gopher_quality.max_mean_word_length": " ".join(["internationalisation"] * 30 + ["the of"] * 15),
        "gopher_quality.max_hashes_per_word": PROSE + " #tag" * 20,
        "gopher_quality.max_bullet_lines": "\n".join(f"- {line}" for line in PROSE.split(". ")),
        "gopher_quality.min_alphabetic_words": PROSE + " 12 345 67" * 20,
        "gopher_quality.min_stop_words": "Elle marche vers la maison bleue dans le village. " * 8,
        "gopher_repetition.max_duplicate_lines": "Buy now!\n" * 5 + PROSE.replace(". ", ".\n"),
        "gopher_repetition.max_top_2_gram": PROSE + " good morning" * 20,
        "gopher_repetition.max_duplicate_5_grams": PROSE + " " + PROSE[:110],
        "c4.max_curly_brackets": PROSE + " function() { return }",
        "c4.max_lorem_ipsum": PROSE + " Lorem ipsum dolor sit amet.",
        "c4.min_sentences": "One sentence only, however long it may go on and on.",
        "fineweb.min_punctuated_lines": "\n".join(PROSE.split()[:40]),
        "fineweb.max_short_lines": "\n".join(line + "." for line in ["Home", "About us", "Contact"]) + "\n" + PROSE,
    }.items(),
)
def test_each_rule_is_the_reason_that_is_given(rule: str, text: str):
    found = first_broken(rules_of([rule.partition(".")[0]], {}), text)
    assert found is not None
    assert found[0].name == rule
    assert not found[0].holds(found[1])


def test_rules_hold_at_their_bounds_as_their_papers_say():
    bounds = {rule.name: rule for rule in rules_of(ALL, {})}
    assert bounds["gopher_quality.min_words"].holds(50)
    assert bounds["gopher_repetition.max_duplicate_lines"].holds(0.30)
    assert not bounds["fineweb.min_punctuated_lines"].holds(0.12)
    assert not bounds["fineweb.max_duplicate_line_characters"].holds(0.1)
    assert len(bounds) == 10 + 13 + 3 + 3


def test_a_threshold_moves_its_rule_and_a_wrong_one_names_the_nearest():
    rules = rules_of(["gopher_quality"], {"gopher_quality.min_words": 3})
    assert first_broken(rules, "The garden belongs to the village.") is None
    with pytest.raises(UserError, match=r"no rule 'gopher_quality.min_word'; did you mean 'gopher_quality.min_words'"):
        rules_of(["gopher_quality"], {"gopher_quality.min_word": 3})
    for text in ("", "x", *tiny_text(3)):
        assert first_broken(rules_of(ALL, loosest(ALL)), text) is None


def test_c4_keeps_the_lines_that_are_prose():
    page = (
        "Home | About\nIt was a dark night.[1]\nToo short.\nWe use cookies on this site.\nEnable JavaScript to go on.\n"
    )
    page += "And then...\nHe said: “come with me!”"
    assert c4_lines(page) == "It was a dark night.\nHe said: “come with me!”"


def test_names_of_measures_that_take_a_length():
    rules = {rule.name: rule for rule in rules_of(["gopher_repetition"], {})}
    measure = rules["gopher_repetition.max_duplicate_7_grams"].measure
    assert isinstance(measure, partial)
    assert measure.keywords == {"n": 7}
