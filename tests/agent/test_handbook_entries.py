"""Identities of the handbook: names, leaks, duplicates, retrieval, and prompts."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.agent.conversation.messages import Message
from stages.agent.environment.base import Task
from stages.agent.handbook.entries import NAME, Behaviour, Handbook, parse_behaviours, rejection, with_behaviours

TASK = Task("1", "In which year was the film Silver Harbour with 12 songs released?", ("1987", "Anna Quill"))
ENTRIES = (
    Behaviour("behavior_search_title", "Search for the title of what is asked about before anything else."),
    Behaviour("behavior_read_before_answering", "Visit the document and read it before you answer."),
    Behaviour("behavior_check_subject", "Check that a sentence is about the subject of the question."),
)
HANDBOOK = Handbook(ENTRIES)


def test_entries_are_found_among_other_lines() -> None:
    written = """Here they are:
    - **behavior_Search-Title**: Search for   the title.
    behavior_read: Read it.
    behavior without a colon
    Not one: at all."""
    assert parse_behaviours(written) == [
        Behaviour("behavior_search_title", "Search for the title."),
        Behaviour("behavior_read", "Read it."),
    ]


@settings(max_examples=50, deadline=None)
@given(st.text(max_size=200))
def test_whatever_a_model_writes_the_entries_are_lines_with_sound_names_or_rejected(written: str) -> None:
    for behaviour in parse_behaviours(f"behavior_{written}: {written}\n{written}"):
        assert "\n" not in behaviour.instruction
        assert rejection(behaviour, TASK) or NAME.fullmatch(behaviour.name)


@pytest.mark.parametrize(
    ("name", "instruction", "expected"),
    [
        ("behavior_ok", "Look at the first sentence of a document.", None),
        ("behaviour_ok", "Look at it.", "name"),
        ("behavior_", "Look at it.", "name"),
        ("behavior_ok", "Write <answer> at once.", "tag"),
        ("behavior_ok", "", "long"),
        ("behavior_ok", "x" * 301, "long"),
        ("behavior_ok", "Remember that it came out in 1987.", "number"),
        ("behavior_1987", "Remember the year.", "number"),
        ("behavior_ok", "Films with 12 songs are old.", "number"),
        ("behavior_ok", "Films have 120 minutes.", None),
        ("behavior_ok", "It is often by anna  QUILL.", "answer"),
        ("behavior_anna_quill", "Name the director.", "answer"),
        ("behavior_ok", "If asked: was the film Silver Harbour good, look it up.", "copy"),
    ],
)
def test_nothing_that_gives_the_answer_away_is_kept(name: str, instruction: str, expected: str | None) -> None:
    assert rejection(Behaviour(name, instruction), TASK) == expected


def test_words_of_any_script_are_words() -> None:
    task = Task("1", "В каком году вышел фильм о северной обсерватории?", ("хальден",))
    assert rejection(Behaviour("behavior_ok", "Спроси, в каком году вышел фильм."), task) == "copy"
    assert rejection(Behaviour("behavior_ok", "Спроси о фильме."), task) is None
    (named,) = parse_behaviours("behavior_Проверь-заголовок: Прочти заголовок.")
    assert (named.name, rejection(named, task)) == ("behavior_проверь_заголовок", None)
    entries = (Behaviour("behavior_b", "हिन्दी में खोजो।"), Behaviour("behavior_a", "Read the document."))
    assert Handbook(entries).retrieve("हिन्दी", 1)[0].name == "behavior_b"
    assert not Handbook(entries).says(Behaviour("behavior_c", "दिल्ली के बारे में पढ़ो।"), 0.8)


def test_every_entry_finds_itself_first() -> None:
    for entry in ENTRIES:
        assert HANDBOOK.retrieve(entry.text, 3)[0] == entry


def test_retrieval_gives_no_more_than_asked_for_or_there_is() -> None:
    assert len(HANDBOOK.retrieve("anything", 2)) == 2
    assert len(HANDBOOK.retrieve("anything", 40)) == 3
    assert Handbook().retrieve("anything", 40) == []
    assert HANDBOOK.retrieve("anything", 3) == Handbook(ENTRIES[::-1]).retrieve("anything", 3)


def test_the_handbook_knows_what_it_says() -> None:
    same_name = Behaviour("behavior_search_title", "Something else entirely, about music.")
    same_words = Behaviour("behavior_other", "Before you answer, visit the document and read it.")
    new = Behaviour("behavior_other", "Give dates as numbers of four digits.")
    assert [HANDBOOK.says(entry, 0.8) for entry in (same_name, same_words, new)] == [True, True, False]


def test_an_empty_handbook_leaves_the_prompt_alone() -> None:
    prompt = (Message("system", "S"), Message("user", "Q"))
    assert with_behaviours(prompt, []) == prompt
    told = with_behaviours(prompt, ENTRIES[:1])
    assert told[0].content.startswith("S\n")
    assert ENTRIES[0].text in told[0].content
    assert told[1:] == prompt[1:]
