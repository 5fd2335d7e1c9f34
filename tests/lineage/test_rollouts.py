"""Rollouts as traces, in a real MLflow on SQLite."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from mlflow.entities import Trace

from pipelines.lineage.cursor import Cursor
from pipelines.lineage.mirror import RunMirror
from pipelines.lineage.rollouts import MOST_CHARACTERS, MOST_TRACES
from pipelines.lineage.server import resync
from pipelines.lineage.tracker import Tracker
from pipelines.running.journal import run_directory
from stages.agent.conversation.messages import Message, ToolCall, Trajectory, write_turn
from stages.agent.conversation.records import write_trajectories
from tests.lineage.journals import Writer, stage

LOOK = write_turn("Look.", ToolCall("search", {"query": "tin whistle"}))
VISIT = write_turn("Read.", ToolCall("visit", {"id": 99}))
RIGHT = Trajectory(
    "q7",
    (
        Message("system", "Answer."),
        Message("user", "How many holes?"),
        Message("assistant", LOOK),
        Message("tool", "[8] Tin whistle: six holes"),
        Message("assistant", VISIT),
        Message("tool", "Error: there is no document '99'"),
        Message("assistant", write_turn("So.", "six")),
    ),
    reward=1.0,
    ending="answer",
    question="How many holes?",
    answers=("six",),
    kind="fact",
)
LOST = Trajectory(
    "q8",
    (
        Message("user", "Who?"),
        Message("assistant", "Anna"),
        Message("tool", "Error: no <think>"),
        Message("assistant", LOOK),
    ),
    ending="turns",
    question="Who?",
    answers=("Anna",),
)


def write(store: Path, run: str, trajectories: list[Trajectory], *, keep: bool = True) -> Writer:
    """The journal of a run whose stage `evaluate` made these trajectories, and the dataset."""
    writer = Writer(store, run)
    writer.start([stage("evaluate", "agent.evaluate", hub_token="sesame-open-9")], run)
    writer.begin("evaluate")
    directory = store / "artifacts" / "evaluate" / "trajectories"
    if keep:
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        write_trajectories(directory, trajectories)
    writer.finish("evaluate", makes={"report": "report", "trajectories": "dataset"})
    writer.end()
    return writer


def mirror(store: Path, run: str) -> Cursor:
    RunMirror(store, run, Tracker(store)).catch_up()
    return Cursor.load(run_directory(store, run))


def traces_of(store: Path, cursor: Cursor) -> list[Trace]:
    found = Tracker(store).client.search_traces(locations=[cursor.experiment], max_results=200)
    return sorted(found, key=lambda trace: int(trace.info.tags["regraft.row"]))


@pytest.fixture
def own_store(store: Path, tmp_path: Path) -> Path:
    shutil.copy(store / "mlflow.db", tmp_path / "mlflow.db")
    return tmp_path


def test_a_rollout_is_a_trace_of_the_stages_run(own_store: Path) -> None:
    write(own_store, "traced", [RIGHT, LOST])
    cursor = mirror(own_store, "traced")
    right, lost = traces_of(own_store, cursor)
    child = cursor.children["evaluate#1"]
    assert {trace.info.trace_metadata["mlflow.sourceRun"] for trace in (right, lost)} == {child}
    assert [
        found.info.trace_id
        for found in Tracker(own_store).client.search_traces(
            locations=[cursor.experiment],
            run_id=child,
            order_by=["timestamp_ms ASC"],
            filter_string="tags.`regraft.kind` = 'fact'",
        )
    ] == [right.info.trace_id]
    assert (right.info.tags["regraft.task"], right.info.tags["regraft.ending"]) == ("q7", "answer")
    assert [found.value for found in right.info.assessments] == [1.0]
    assert (right.info.request_preview, right.info.response_preview) == ("How many holes?", "six")
    assert lost.info.response_preview == "no answer (turns)"
    assert right.info.request_time == Tracker(own_store).client.get_run(child).info.end_time


def test_turns_and_tool_calls_are_spans_in_order(own_store: Path) -> None:
    write(own_store, "spans", [RIGHT, LOST])
    right, lost = traces_of(own_store, mirror(own_store, "spans"))
    root, *steps = sorted(right.data.spans, key=lambda span: span.start_time_ns)
    assert (root.name, root.span_type, root.parent_id) == ("evaluate.trajectories", "AGENT", None)
    assert root.inputs == {"task": "q7", "question": "How many holes?", "answers": ["six"], "kind": "fact"}
    assert root.outputs == {"answer": "six", "reward": 1.0, "ending": "answer"}
    assert {span.parent_id for span in steps} == {root.span_id}
    assert [(span.name, span.span_type, span.status.status_code.value) for span in steps] == [
        ("turn", "LLM", "OK"),
        ("search", "TOOL", "OK"),
        ("turn", "LLM", "OK"),
        ("visit", "TOOL", "ERROR"),
        ("turn", "LLM", "OK"),
    ]
    assert [message["role"] for message in steps[0].inputs["messages"]] == ["system", "user"]
    assert steps[0].outputs == {"role": "assistant", "content": LOOK}
    assert (steps[1].inputs, steps[1].outputs) == ({"query": "tin whistle"}, "[8] Tin whistle: six holes")
    assert steps[2].inputs == {"messages": [{"role": "tool", "content": "[8] Tin whistle: six holes"}]}
    assert steps[3].status.description == "Error: there is no document '99'"
    malformed, cut_off = sorted(lost.data.spans, key=lambda span: span.start_time_ns)[1:]
    assert (malformed.status.status_code.value, malformed.status.description[:10]) == ("ERROR", "no <think>")
    assert cut_off.outputs["content"] == LOOK, "the tool that was called last was never run"


def test_mirroring_again_makes_no_second_trace(own_store: Path) -> None:
    write(own_store, "twice", [RIGHT, LOST])
    first = traces_of(own_store, mirror(own_store, "twice"))
    (run_directory(own_store, "twice") / "mirror.json").unlink()
    again = traces_of(own_store, mirror(own_store, "twice"))
    assert [found.to_dict() for found in again] == [found.to_dict() for found in first]
    (own_store / "mlflow.db").unlink()
    assert [outcome.problem for outcome in resync(own_store)] == [""]
    anew = traces_of(own_store, Cursor.load(run_directory(own_store, "twice")))
    assert [(found.info.trace_id, len(found.data.spans)) for found in anew] == [
        (found.info.trace_id, len(found.data.spans)) for found in first
    ]


def test_many_rollouts_are_sampled_over_the_whole_of_them(own_store: Path) -> None:
    write(own_store, "many", [LOST] * (3 * MOST_TRACES))
    rows = [int(found.info.tags["regraft.row"]) for found in traces_of(own_store, mirror(own_store, "many"))]
    assert rows == [3 * number for number in range(MOST_TRACES)]


def test_no_secret_and_nothing_endless_reaches_a_trace(own_store: Path) -> None:
    said = (
        Message("user", "sesame-open-9"),
        Message("assistant", write_turn("", ToolCall("login", {"api_key": "sesame-open-8", "user": "joe"}))),
        Message("tool", "hf_abcdefghijklmnopqrstuvwx " + "x" * 2 * MOST_CHARACTERS),
        Message("assistant", "sesame-open-9"),
    )
    write(
        own_store, "hidden", [Trajectory("sesame-open-9", said, question="sesame-open-9", answers=("sesame-open-9",))]
    )
    (found,) = traces_of(own_store, mirror(own_store, "hidden"))
    content = b"".join(file.read_bytes() for file in own_store.glob("mlflow.db*"))
    assert [secret for secret in (b"sesame-open-8", b"sesame-open-9", b"hf_abcdefgh") if secret in content] == []
    (login,) = found.search_spans(name="login")
    assert login.inputs["user"] == "joe"
    assert len(login.outputs) == MOST_CHARACTERS


@pytest.mark.parametrize("damage", ["gone", "damaged"])
def test_a_dataset_that_cannot_be_read_keeps_nothing_back(own_store: Path, damage: str) -> None:
    write(own_store, damage, [RIGHT], keep=damage == "damaged")
    if damage == "damaged":
        (own_store / "artifacts/evaluate/trajectories/shard-00000.parquet").write_bytes(b"not parquet")
    cursor = mirror(own_store, damage)
    assert Tracker(own_store).client.get_run(cursor.parent).info.status == "FINISHED"
    assert traces_of(own_store, cursor) == []
