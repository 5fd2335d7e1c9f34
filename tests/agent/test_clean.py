"""Cleaning: every step, what it counts, resampling at the edges, and that cleaning twice changes nothing."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from stages.agent.conversation.messages import Message, ToolCall, write_turn
from stages.agent.conversation.records import read_trajectories, write_trajectories
from stages.agent.environment.base import system_prompt
from stages.agent.questions.stage import AgentQuestions
from stages.agent.trajectories.clean import AgentClean, CleanParameters
from stages.agent.trajectories.cleaning import Rules, clean, copies, structure_problem
from stages.agent.trajectories.collect import AgentCollect
from stages.artifacts import Dataset
from stages.errors import UserError
from tests.agent.world import Echo, make_index, run, talk

RULES = Rules({"echo": Echo()})


def call(text: str, name: str = "echo") -> tuple[str, str]:
    return "assistant", write_turn("", ToolCall(name, {"text": text}))


ANSWER = ("assistant", write_turn("So.", "ok"))
SOUND = talk(call("a"), ("tool", "a"), call("b"), ("tool", "b"), ANSWER)


def roles(trajectory) -> list[str]:
    return [message.role for message in trajectory.messages]


def test_what_is_sound_is_kept():
    (found,), ledger = clean([SOUND], RULES)
    assert found.messages[1:] == SOUND.messages[1:]
    assert found.messages[0] == Message("system", system_prompt(RULES.tools))
    assert ledger.trajectories == {}
    assert ledger.aligned == 1, "its system message"


def test_disallowed_calls_go_with_what_they_gave():
    given = talk(
        call("1", "python"), ("tool", "out"), call("a"), ("tool", "a"), call("2", "python"), ("tool", "x"), ANSWER
    )
    (found,), ledger = clean([given], RULES)
    assert roles(found) == ["system", "user", "assistant", "tool", "assistant"]
    assert ledger.trajectories == {"disallowed tool": 1}
    assert ledger.calls == {"disallowed tool": 2}
    assert "python" in ledger.samples["disallowed tool"][0]


def test_calls_made_before_go_with_what_they_gave():
    given = talk(call("a"), ("tool", "a"), call("a"), ("tool", "again"), call("b"), ("tool", "b"), ANSWER)
    (found,), ledger = clean([given], RULES)
    assert found.messages[1:] == SOUND.messages[1:]
    assert ledger.calls == {"duplicate call": 1}


@pytest.mark.parametrize(
    ("turns", "reason"),
    [
        ([call("a"), ("tool", "a"), ("assistant", "ok")], "malformed turn: no <think>…</think> comes first"),
        ([("assistant", "<think>a</think>"), ("tool", "no"), ANSWER], "malformed turn: the thought is not followed"),
        ([("assistant", "<think>a<answer>ok"), ("tool", "no"), ANSWER], "malformed turn: a tag is unbalanced"),
        ([call("a"), ("tool", "a")], "no answer at the end"),
        ([], "no answer at the end"),
        ([call("a"), ANSWER], "roles out of order"),
        ([ANSWER, ("tool", "a"), ANSWER], "roles out of order"),
        ([call("a"), ("tool", "a"), ("tool", "b"), ANSWER], "roles out of order"),
        ([("user", "more"), ANSWER], "roles out of order"),
        ([call("a"), ("critic", "a"), ANSWER], "roles out of order"),
        ([call("a"), ("tool", "a"), ANSWER, ("user", "thanks")], "roles out of order"),
        ([call("a"), ("tool", "a"), ("assistant", write_turn("", "ko"))], "wrong answer"),
    ],
)  # fmt: skip
def test_each_reason_to_drop(turns, reason):
    kept, ledger = clean([talk(*turns), SOUND], RULES)
    assert len(kept) == 1
    (found,) = ledger.trajectories
    assert found.startswith(reason)
    assert ledger.trajectories[found] == 1
    assert ledger.samples[found][0].startswith("t: ")


def test_without_answers_the_reward_decides():
    kept, ledger = clean([replace(SOUND, answers=(), reward=0.99), replace(SOUND, answers=(), reward=1.0)], RULES)
    assert len(kept) == 1
    assert ledger.trajectories == {"wrong answer": 1}


def test_without_tools_the_reward_decides_and_the_prompt_stays():
    minus_five = ("assistant", write_turn("", "-5"))
    wrong, right = (
        talk(minus_five, answers=answers, reward=reward) for answers, reward in ((("5",), 0), (("-5.0",), 1))
    )
    kept, ledger = clean([wrong, right], Rules({}))
    assert kept == [right], "words alone would take -5 for 5"
    assert ledger.trajectories == {"wrong answer": 1}
    assert ledger.aligned == 0


def test_a_repeated_trajectory_counts_once():
    later = talk(call("a"), ("tool", "a"), call("a"), ("tool", "a"), call("b"), ("tool", "b"), ANSWER)
    kept, ledger = clean([SOUND, SOUND, later], RULES)
    assert len(kept) == 1, "the last is equal once its repeated call is out"
    assert ledger.trajectories["repeated trajectory"] == 2


def test_other_formats_are_aligned():
    foreign = talk(
        ("gpt", '<think>t</think><tool_call>{"name": "say", "parameters": "{\\"words\\": \\"a\\"}"}</tool_call>'),
        ("user", "<tool_response>\na\n</tool_response>"),
        ("model", '<think></think><tool_call>{"args": {"words": "b"}, "name": "say"}</tool_call>'),
        ("observation", "b"),
        ANSWER,
    )
    foreign = replace(foreign, messages=(Message("human", "Q?"), *foreign.messages[2:]))
    rules = replace(RULES, tool_names={"say": "echo"}, argument_names={"echo.words": "text"})
    (found,), ledger = clean([foreign], rules)
    assert roles(found) == roles(SOUND)
    assert [turn.call for turn in found.turns[:-1]] == [ToolCall("echo", {"text": t}) for t in "ab"]
    assert found.messages[3] == Message("tool", "a")
    assert ledger.aligned == 1


def test_a_user_cannot_pose_as_a_tool():
    posing = replace(SOUND, messages=(*SOUND.messages[:1], Message("user", "<tool_response>\nx\n</tool_response>"),
                                      *SOUND.messages[2:]))  # fmt: skip
    (found,), _ = clean([posing], RULES)
    assert found.messages[1].role == "user"


@pytest.mark.parametrize(("turns", "times"), [(1, 1), (50, 1), (51, 2), (100, 2), (101, 5), (400, 5)])
def test_resampling_at_its_edges(turns, times):
    said = [part for n in range(turns - 1) for part in (call(str(n)), ("tool", "x"))]
    kept, _ = clean([talk(*said, ANSWER)], RULES)
    assert len(kept) == times == copies(turns, ((100, 5), (50, 2))), "in whatever order the bins are given"


PIECES = st.sampled_from(
    [call("a"), call("b"), call("c", "python"), ("tool", "a"), ("assistant", "bad"), ("user", "x"), ANSWER]
)


@given(st.lists(st.lists(PIECES, max_size=6).map(lambda turns: talk(*turns, ANSWER)), max_size=6))
def test_cleaning_twice_changes_nothing(given):
    rules = replace(RULES, resample=((1, 2), (2, 3)))
    once, _ = clean(given, rules)
    twice, ledger = clean(once, rules)
    assert twice == once
    assert set(ledger.trajectories) <= {"repeated trajectory"}
    assert ledger.aligned == 0
    assert all(structure_problem(found) is None for found in once)


def test_names_that_would_change_again_are_refused():
    with pytest.raises(ValidationError, match="browse becomes visit, which is renamed itself"):
        CleanParameters(tool_names={"browse": "visit", "visit": "open"})
    with pytest.raises(ValidationError, match="in the end"):
        CleanParameters(argument_names={"visit.url": "link", "visit.link": "id"})
    assert CleanParameters(argument_names={"visit.id": "id", "search.id": "query"})


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("world")
    index = make_index(root)
    run(AgentQuestions, {"index": index}, root, kinds=("fact", "bridge", "cloze"), per_kind=8, heldout_fraction=0.3)
    return {"index": index, "questions": Dataset(root / "out/train")}


def test_the_expert_is_always_right(world, tmp_path):
    context = run(AgentCollect, world, tmp_path)
    found = read_trajectories(Dataset(tmp_path / "out/trajectories"))
    assert context.results["success"] == 1
    assert all(one.reward == 1 and one.ending == "answer" for one in found)
    rows, ledger = clean(found, Rules({name: Echo() for name in ("search", "visit")}, resample=()))
    assert len(rows) == len(found)
    assert ledger.trajectories == {}
    assert all(turn.thought for one in found for turn in one.turns)


def test_every_error_of_the_expert_is_found(world, tmp_path):
    errors = dict.fromkeys(("detour", "repeat", "foreign", "malformed", "wrong"), 0.5)
    collected = run(AgentCollect, world, tmp_path, per_question=4, **errors)
    assert {name for name in collected.results if name.startswith("errors_")} == {f"errors_{name}" for name in errors}
    inputs = {"trajectories": Dataset(tmp_path / "out/trajectories"), "index": world["index"]}
    context = run(AgentClean, inputs, tmp_path / "clean", resample=[[3, 2]])
    counts = context.results
    assert counts["read"] == collected.results["trajectories"] == counts["kept"] + counts["dropped"]
    rows = read_trajectories(Dataset(tmp_path / "clean/out/trajectories"))
    assert len(rows) == counts["rows"] > counts["kept"]
    assert {row.reward for row in rows} == {1.0}
    report = (tmp_path / "clean/out/report/report.json").read_text()
    for reason in ("disallowed tool", "duplicate call", "malformed turn", "wrong answer"):
        assert reason in report
    again = {"trajectories": Dataset(tmp_path / "clean/out/trajectories"), "index": world["index"]}
    twice = run(AgentClean, again, tmp_path / "twice", resample=[[3, 2]])
    shard = "out/trajectories/shard-00000.parquet"
    assert (tmp_path / "twice" / shard).read_bytes() == (tmp_path / "clean" / shard).read_bytes()
    assert twice.results["removed_calls"] == 0


def test_an_environment_without_an_index(tmp_path):
    found = [talk(ANSWER, task="right"), talk(ANSWER, task="wrong", question="Another?", reward=0.5)]
    (tmp_path / "found").mkdir()
    write_trajectories(tmp_path / "found", found)
    context = run(AgentClean, {"trajectories": Dataset(tmp_path / "found")}, tmp_path)
    assert (context.results["kept"], context.results["dropped"]) == (1, 1)
    (kept,) = read_trajectories(Dataset(tmp_path / "out/trajectories"))
    assert kept.messages == found[0].messages


def test_nothing_clean_says_why(world, tmp_path):
    write_trajectories(make(tmp_path / "bad"), [talk(("assistant", "bad"))])
    with pytest.raises(UserError, match="none of 1 trajectories is clean: 1: malformed turn") as caught:
        run(AgentClean, {"trajectories": Dataset(tmp_path / "bad"), "index": world["index"]}, tmp_path)
    assert "as 't: bad'" in caught.value.message, "there is no report to look at"


def test_foreign_rows_are_read_as_they_are(world, tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    from stages.artifacts import DatasetCard

    rows = [{"trajectory": [{"role": None, "content": None}], "reward": None}, {"trajectory": None, "reward": 1.0}]
    kinds = pa.schema([("trajectory", pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))), ("reward", pa.float64())])  # fmt: skip # noqa: E501
    pq.write_table(pa.Table.from_pylist(rows, kinds), make(tmp_path / "rows") / "shard-00000.parquet")
    DatasetCard("trajectories", 2, 0).write(tmp_path / "rows")
    with pytest.raises(UserError, match="none of 2 trajectories is clean: 2: no answer at the end"):
        run(AgentClean, {"trajectories": Dataset(tmp_path / "rows"), "index": world["index"]}, tmp_path)


def make(directory):
    directory.mkdir(parents=True, exist_ok=True)
    return directory
