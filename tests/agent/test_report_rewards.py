"""What actions and reports are worth: units, bounds, and what earns nothing."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.agent.report.actions import Action, Expand, Initialize, Search, Terminate, Write
from stages.agent.report.judge import PLAN, REPORT, TEXT, Draft, Plan, Text
from stages.agent.report.judge_rule import RuleJudge
from stages.agent.report.rewards import (
    TextRules,
    citation_f1,
    decision,
    faithfulness,
    planning,
    retrieval,
    same_script,
    writing,
)
from stages.agent.report.state import Evidence
from tests.agent.library import OTHER, OVEN, STEAM, TOPIC, after

BEGIN = Initialize(("Rye bread", "Pumpernickel"))
JUDGE = RuleJudge()
RULES = TextRules(fewest=5, most=12, citations=2)
DUE = after(BEGIN, (Search(("oven",)), (OVEN, STEAM, OTHER)))
GOOD = "The closed oven was heated in Soest since 1570 [6]."
documents = st.lists(st.integers(1, 9), max_size=6)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Heated [6], darkened [7].", 1.0),
        ("Heated [6].", 2 / 3),
        ("Heated [6], darkened [7], seen [9].", 4 / 5),
        ("Heated [6], darkened [7], invented [8].", 0.0),
        ("Heated.", 0.0),
        ("Seen [9].", 0.0),
    ],
)
def test_citations_are_worth_their_f1_and_nothing_with_one_that_was_not_found(text: str, expected: float) -> None:
    assert citation_f1(text, (6, 7, 9), TOPIC.golden) == pytest.approx(expected)


def test_where_nothing_found_is_asked_for_nothing_is_to_be_cited() -> None:
    assert citation_f1("Nothing.", (9,), TOPIC.golden) == 1.0
    assert citation_f1("Seen [9].", (9,), TOPIC.golden) == 0.0


@given(documents, documents, documents)
def test_citation_f1_stays_within_bounds(cited: list[int], found: list[int], golden: list[int]) -> None:
    text = " ".join(f"[{number}]" for number in cited)
    worth = citation_f1(text, found, golden)
    assert 0 <= worth <= 1
    assert worth == 0 or set(cited) <= set(found)


@given(documents, st.sets(st.integers(1, 9), min_size=1))
def test_recall_is_a_share_and_grows_with_what_is_found(found: list[int], needed: set[int]) -> None:
    evidence = [Evidence(number, "", "") for number in found]
    worth = retrieval(evidence, needed)
    assert worth == len(set(found) & needed) / len(needed)
    assert 0 <= worth <= retrieval([*evidence, *(Evidence(number, "", "") for number in needed)], needed) == 1


@pytest.mark.parametrize(("words", "holds"), [(4, False), (5, True), (12, True), (13, False)])
def test_lengths_count_at_their_bounds_without_citations(words: int, holds: bool) -> None:
    text = " ".join(["word"] * words) + " [6]"
    assert RULES.hold(text) == holds
    assert (writing(TOPIC, DUE, text, JUDGE, RULES) > 0) == holds


def test_too_many_citations_are_worth_nothing() -> None:
    text = "Five words of some text"
    assert RULES.hold(f"{text} [6] [7] [7]")
    assert not RULES.hold(f"{text} [6] [7] [9]")


def test_a_good_text_is_worth_more_than_each_of_its_faults() -> None:
    best = writing(TOPIC, DUE, GOOD, JUDGE, RULES)
    assert 0 < best <= 1
    for worse in (
        GOOD.replace("[6]", "[8]"),
        GOOD.replace("Soest", "Dortmund"),
        GOOD.replace(" [6]", ""),
        "Ovens of the closed sort are warm [6].",
    ):
        assert 0 < writing(TOPIC, DUE, worse, JUDGE, RULES) < best, worse
    assert writing(TOPIC, DUE, "Закрытая печь для хлеба всегда тёплая [6].", JUDGE, RULES) == 0, "another script"


def test_names_and_numbers_have_to_stand_in_a_document_that_is_cited() -> None:
    assert faithfulness(GOOD, [OVEN, STEAM]) == 1
    assert faithfulness("It was heated in Soest in 1999 [6].", [OVEN]) == 0.5, "Soest, not 1999"
    assert faithfulness("heated in Soest [7]", [OVEN, STEAM]) == 0, "what is cited does not say it"
    assert faithfulness("nothing is claimed", []) == 1


def test_a_plan_is_worth_what_it_names_in_one_level_and_language() -> None:
    drafted = after(
        BEGIN, (Search(("x",)), (OVEN,)), Write("Rye [6]."), (Search(("y",)), (STEAM,)), Write("It is dark [7].")
    )
    best = planning(TOPIC, drafted, Expand("2", ("Westphalian oven", "Steam baking")), JUDGE)
    assert best == pytest.approx(1.0)
    for worse in (("Westphalian oven", "Westphalian oven door"), ("Rye bread", "Steam baking"), ("Whales", "Ships")):
        assert planning(TOPIC, drafted, Expand("2", worse), JUDGE) < best, worse
    assert planning(TOPIC, drafted, Expand("2", ("Печь", "Пар")), JUDGE) == 0
    assert planning(TOPIC, after(), BEGIN, JUDGE) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("action", "of_expanding", "of_terminating"),
    [
        (Expand("2", ("a", "b")), 1.0, 0.0),
        (Expand("1", ("a", "b")), 0.0, 0.0),
        (Terminate(), 0.0, 1.0),
        (Write("x"), 0.0, 0.0),
    ],
)
def test_a_decision_is_right_or_wrong(action: Action, of_expanding: float, of_terminating: float) -> None:
    assert decision(action, Expand("2", ("c", "d"))) == of_expanding
    assert decision(action, Terminate()) == of_terminating


def test_scripts_are_told_by_most_letters() -> None:
    assert same_script("Ångström and Жук", "English")
    assert not same_script("Пумперникель (bread)", "English")
    assert same_script("1570", "English"), "no letters, no script"


sections = st.text(st.sampled_from("abc Soest1570.[67]"), max_size=60)


@given(sections, sections)
def test_ratings_are_between_1_and_5_whatever_is_written(one: str, other: str) -> None:
    found = (OVEN, STEAM)
    state = after(BEGIN, (Search(("x",)), found), Write(one or "."), (Search(("y",)), found))
    work = [
        (Plan(TOPIC, state, (one, other), "Pumpernickel"), PLAN),
        (Text(TOPIC, state, other), TEXT),
        (Draft(TOPIC, state), REPORT),
        (Draft(TOPIC, after()), REPORT),
    ]
    for given_work, criteria in work:
        ratings = JUDGE.rate(given_work, criteria)
        assert list(ratings) == list(criteria)
        assert all(1 <= rating <= 5 for rating in ratings.values())
        assert 0 <= JUDGE.value(given_work, criteria) <= 1
        assert given_work.shown()


def test_a_report_rises_with_what_the_checklist_holds() -> None:
    drafts = [
        after(BEGIN, (Search(("x",)), (OVEN,)), Write(text))
        for text in ("Bread is bread.", "The oven was heated in Soest.", "The oven was heated in Soest since 1570 [6].")
    ]
    values = [JUDGE.rate(Draft(TOPIC, draft), REPORT)["comprehensiveness"] for draft in drafts]
    assert values == [1.0, 1.0, pytest.approx(1 + 4 / 6)], "what is said counts where its document is cited"


def test_saying_it_again_reads_badly_and_brings_nothing() -> None:
    once = after(
        BEGIN, (Search(("x",)), (OVEN,)), Write(GOOD), (Search(("y",)), (STEAM,)), Write("It darkens slowly here [7].")
    )
    twice = after(BEGIN, (Search(("x",)), (OVEN,)), Write(GOOD), (Search(("y",)), (OVEN,)), Write(GOOD))
    before, again = (JUDGE.rate(Draft(TOPIC, state), REPORT) for state in (once, twice))
    assert before["readability"] > again["readability"]
    assert before["insight"] > again["insight"]
