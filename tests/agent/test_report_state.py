"""The state machine of reports (WARP, arXiv 2602.06540): what is possible when, and what may never be."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.agent.report.actions import Action, ActionError, Expand, Initialize, Search, Terminate, Write
from stages.agent.report.state import Limits, State, advanced, expandable, possible
from tests.agent.library import OVEN, STEAM, TOPIC, after, replayed

BEGIN = Initialize(("Rye", "Steam"))
FIND = (Search(("rye",)), (OVEN, STEAM))
DRAFTED = (BEGIN, FIND, Write("One [6]."), FIND, Write("Two [7]."))


@pytest.mark.parametrize(
    ("taken", "action", "options"),
    [
        ((), Write("x"), "initialize"),
        ((), Search(("x",)), "initialize"),
        ((), Expand("1", ("a", "b")), "initialize"),
        ((), Terminate(), "initialize"),
        ((BEGIN,), BEGIN, "search"),
        ((BEGIN,), Write("x"), "search"),
        ((BEGIN, FIND), Search(("x",)), "write"),
        ((BEGIN, FIND), Terminate(), "write"),
        (DRAFTED, Write("x"), "expand or terminate"),
        (DRAFTED, Initialize(("a", "b")), "expand or terminate"),
        ((*DRAFTED, Terminate()), Terminate(), "nothing more"),
        ((*DRAFTED, Terminate()), Expand("1", ("a", "b")), "nothing more"),
    ],
)
def test_an_action_out_of_turn_is_refused(taken: tuple[Any, ...], action: Action, options: str) -> None:
    with pytest.raises(ActionError, match=f"{action.name} is not possible now; possible: {options}$"):
        advanced(after(*taken), action, Limits())


@pytest.mark.parametrize(
    ("taken", "action", "why"),
    [
        ((), Initialize(("a",)), "1 titles below initialize; possible: 2 to 7"),
        ((), Initialize(tuple("abcdefgh")), "8 titles"),
        ((), Initialize(("Rye", "rye")), "a title stands twice"),
        ((BEGIN,), Search(()), "0 queries below search; possible: 1 to 3"),
        ((BEGIN,), Search(tuple("abcd")), "4 queries"),
        ((BEGIN, FIND), Write(""), "no text below write"),
        (DRAFTED, Expand("1", ("a",)), "1 titles below expand"),
        (DRAFTED, Expand("3", ("a", "b")), "section 3 cannot be expanded; possible: 1, 2"),
        (DRAFTED, Expand("1.1", ("a", "b")), "section 1.1 cannot"),
    ],
)
def test_an_action_of_another_form_is_refused(taken: tuple[Any, ...], action: Action, why: str) -> None:
    with pytest.raises(ActionError, match=why):
        advanced(after(*taken), action, Limits())


def written(state: State, limits: Limits) -> State:
    """The state with every leaf searched for and written."""
    while state.due:
        state = advanced(advanced(state, Search(("x",)), limits), Write("Text."), limits)
    return state


def test_no_section_goes_below_the_last_level() -> None:
    limits = Limits(levels=3)
    state = written(advanced(after(*DRAFTED), Expand("1", ("a", "b")), limits), limits)
    assert expandable(state, limits) == ["1.1", "1.2", "2"]
    state = written(advanced(state, Expand("1.1", ("c", "d")), limits), limits)
    assert expandable(state, limits) == ["1.2", "2"]
    with pytest.raises(ActionError, match=r"section 1\.1\.1 cannot be expanded"):
        advanced(state, Expand("1.1.1", ("e", "f")), limits)


def test_the_thirteenth_expansion_is_refused() -> None:
    limits = Limits(expansions=12, levels=20, steps=1000)
    state = after(*DRAFTED)
    for number in range(1, 13):
        state = written(advanced(state, Expand(expandable(state, limits)[0], ("a", "b")), limits), limits)
        assert state.expansions == number
    assert possible(state, limits) == ("terminate",)
    with pytest.raises(ActionError, match="expand is not possible now; possible: terminate"):
        advanced(state, Expand("2", ("a", "b")), limits)
    assert advanced(state, Terminate(), limits).finished


def test_what_is_due_is_the_first_leaf_without_a_text() -> None:
    state = after(*DRAFTED, Expand("1", ("a", "b")))
    assert state.due is not None
    assert state.due[0] == "1.1"
    assert [number for number, _ in state.walk()] == ["1", "1.1", "1.2", "2"]
    assert dict(state.walk())["1"].text == "One [6].", "a section that is deepened keeps its text"


def test_out_of_steps_nothing_is_possible() -> None:
    limits = Limits(steps=3)
    state = after(BEGIN, FIND, Write("x"), limits=limits)
    assert possible(state, limits) == ()
    with pytest.raises(ActionError, match="nothing more"):
        advanced(state, Search(("x",)), limits)


def test_documents_found_twice_count_once() -> None:
    state = after(BEGIN, (Search(("a", "b")), (OVEN, STEAM, OVEN)))
    assert state.due is not None
    assert state.due[1].evidence == (OVEN, STEAM)


@given(st.data())
def test_any_possible_walk_replays_to_the_same_report(data: st.DataObject) -> None:
    limits = Limits(levels=3, expansions=2, steps=16)
    state, taken = State(TOPIC.query), []
    while options := possible(state, limits):
        action: Action
        match data.draw(st.sampled_from(options)):
            case "initialize":
                action = BEGIN
            case "search":
                action = FIND[0]
            case "write":
                action = Write(data.draw(st.sampled_from(("One.", "Two [6]."))))
            case "expand":
                action = Expand(data.draw(st.sampled_from(expandable(state, limits))), ("a", "b"))
            case _:
                action = Terminate()
        found = FIND[1] if isinstance(action, Search) else ()
        before, state = state, advanced(state, action, limits, found)
        assert state.steps == before.steps + 1
        taken.append((action, found))
    assert replayed(TOPIC.query, taken, limits) == state
    assert state.finished == isinstance(taken[-1][0], Terminate)
    assert state.expansions <= 2
    assert all(number.count(".") < 3 for number, _ in state.walk())


def test_a_replay_stops_at_what_was_not_possible() -> None:
    with pytest.raises(ActionError, match="write is not possible now"):
        replayed("Q", [(BEGIN, ()), (Write("x"), ())], Limits())
