"""Actions as text: what is written is read back, and what is no action is refused in words."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.agent.conversation.messages import parse_turn, write_turn
from stages.agent.report.actions import (
    NAMES,
    Action,
    ActionError,
    Expand,
    Initialize,
    Search,
    Terminate,
    Write,
    parse_action,
    write_action,
)

words = st.text(st.characters(exclude_categories=("C", "Z"), exclude_characters="<>"), min_size=1, max_size=8)
lines = st.lists(words, min_size=1, max_size=4).map(" ".join)
titles = st.lists(lines, min_size=1, max_size=7).map(tuple)
numbers = st.lists(st.integers(1, 20), min_size=1, max_size=4).map(lambda parts: ".".join(map(str, parts)))
actions: st.SearchStrategy[Action] = st.one_of(
    st.builds(Initialize, titles),
    st.builds(Search, titles),
    st.builds(Expand, numbers, titles),
    st.builds(Write, st.lists(lines, min_size=1, max_size=4).map("\n".join)),
    st.just(Terminate()),
)


@given(actions, words)
def test_a_turn_says_exactly_its_action(action: Action, thought: str) -> None:
    said = parse_turn(write_turn(thought, write_action(action)))
    assert said.answer is not None
    assert parse_action(said.answer) == action


@given(st.text(max_size=80))
def test_any_text_is_an_action_or_refused(text: str) -> None:
    try:
        action = parse_action(text)
    except ActionError as refusal:
        assert str(refusal)
    else:
        assert action.name in NAMES


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "write up\nText",
        "Write\nText",
        "expand\nA\nB",
        "expand two\nA\nB",
        "search 2\nrye",
        "stop",
    ],
)
def test_what_is_no_action_is_refused(answer: str) -> None:
    with pytest.raises(ActionError, match="is no action: the first line is initialize, search, write, expand NUMBER"):
        parse_action(answer)


def test_nothing_follows_the_end() -> None:
    with pytest.raises(ActionError, match="nothing follows terminate"):
        parse_action("terminate\nnow")


def test_spaces_and_empty_lines_say_nothing() -> None:
    assert parse_action(" search \n\n  rye   bread \n\nflour\n") == Search(("rye bread", "flour"))
    assert parse_action("write\n\nOne.\n\nTwo.\n") == Write("One.\n\nTwo.")
