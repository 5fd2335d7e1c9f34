"""`source.trajectories`: conversations of one's own become what `agent.clean` and `agent.sft` read."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stages.agent.conversation.messages import Message, write_turn
from stages.agent.conversation.records import read_trajectories
from stages.agent.trajectories.clean import AgentClean, CleanParameters
from stages.artifacts import Dataset
from stages.errors import UserError
from stages.source.trajectories import SourceTrajectories, SourceTrajectoriesParams
from stages.stage import Context

TURN = write_turn("It is said in the text.", "the Aare")
CHAT = [
    {"role": "system", "content": "Answer."},
    {"role": "user", "content": "Which river?"},
    {"role": "assistant", "content": TURN},
]


def bring(dataset: str | Path, out: Path, **params: Any) -> Context:
    stage = SourceTrajectories(SourceTrajectoriesParams(dataset=str(dataset), **params))
    stage.preflight()
    stage.sources()
    context = Context(inputs={}, out=out / "out", scratch=out / "scratch")
    stage.run(context)
    return context


def trajectories(context: Context) -> list[Any]:
    return read_trajectories(Dataset(context.output("trajectories")))


def write(file: Path, *records: Any) -> Path:
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    return file


def test_every_format_gives_the_same_trajectories(tmp_path: Path):
    records = [
        {"messages": CHAT, "reward": 0.5, "answers": ["Aare", "the Aare"], "question": "River?", "kind": "geography"},
        {"messages": CHAT[1:], "reward": None, "answers": None, "question": None, "kind": None},
    ]
    write(tmp_path / "a.jsonl", *records)
    (tmp_path / "a.json").write_text(json.dumps(records))
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress((tmp_path / "a.jsonl").read_bytes()))
    pq.write_table(pa.Table.from_pylist(records), tmp_path / "a.parquet")
    for name in ("a.jsonl", "a.json", "a.jsonl.gz", "a.parquet"):
        context = bring(tmp_path / name, tmp_path / f"to-{name}")
        first, second = trajectories(context)
        assert first.messages == tuple(Message(**each) for each in CHAT), name
        assert (first.reward, first.answers, first.question, first.kind) == (
            0.5, ("Aare", "the Aare"), "River?", "geography",
        )  # fmt: skip
        assert (second.reward, second.answers, second.question, second.kind) == (1.0, (), "Which river?", "")
        assert (first.answer, first.ending) == ("the Aare", "answer")
    counts = {"trajectories": 2, "messages": 5, "trajectories_read": 2, "bad_rows": 0}
    assert context.results == counts
    assert Dataset(context.output("trajectories")).card.source == "a.parquet"


def test_another_field_and_a_single_answer(tmp_path: Path):
    file = write(tmp_path / "a.jsonl", {"chat": CHAT, "answers": "Aare"}, {"chat": CHAT})
    context = bring(file, tmp_path, messages_field="chat", limit=1)
    assert [found.answers for found in trajectories(context)] == [("Aare",)]
    with pytest.raises(UserError, match=r"a\.jsonl:1 has no field 'messages'") as caught:
        bring(file, tmp_path)
    assert "messages_field" in caught.value.fix


BAD = {
    "holds a str in field 'messages', expected a list of messages": {"messages": "hello"},
    "holds an empty list in field 'messages'": {"messages": []},
    "holds a str as message 0 of 'messages', expected an object with role and content": {"messages": ["hi"]},
    "has in message 1 of 'messages' a content that is of type NoneType": {
        "messages": [CHAT[1], {"role": "assistant", "content": None, "tool_calls": []}]
    },
    "has in message 0 of 'messages' a role that is missing, among from, value": {
        "messages": [{"from": "human", "value": "hi"}]
    },
    "has role 'asistant' in message 1 of 'messages', expected system, user, assistant, tool; did you mean": {
        "messages": [CHAT[1], {"role": "asistant", "content": "yes"}]
    },
    "has in message 0 of 'messages' content that is binary": {"messages": [{"role": "user", "content": "a\x00"}]},
    "has no message of the assistant in field 'messages'": {"messages": CHAT[:2]},
    "has reward 3, expected a number from 0 to 1": {"messages": CHAT, "reward": 3},
    "has reward True, expected a number": {"messages": CHAT, "reward": True},
    "has answers [1], expected a text or a list of texts": {"messages": CHAT, "answers": [1]},
    "has kind 7, expected text": {"messages": CHAT, "kind": 7},
}


@pytest.mark.parametrize(("told", "record"), BAD.items(), ids=range(len(BAD)))
def test_a_record_that_is_no_conversation_stops_with_its_line_or_is_counted(tmp_path: Path, told: str, record: Any):
    file = write(tmp_path / "in.jsonl", {"messages": CHAT}, record, {"messages": CHAT})
    with pytest.raises(UserError) as caught:
        bring(file, tmp_path / "error")
    assert f"in.jsonl:2 {told}" in caught.value.message
    context = bring(file, tmp_path / "skip", on_bad_row="skip")
    assert len(trajectories(context)) == context.results["trajectories"] == 2
    assert context.results["bad_rows"] == 1
    (shown,) = json.loads((context.output("report") / "report.json").read_text())["details"]["bad_rows"]
    assert shown.startswith(f"in.jsonl:2 {told}")


def test_files_without_lists_and_files_without_conversations_are_refused(tmp_path: Path):
    (tmp_path / "a.csv").write_text("messages\nhello\n")
    with pytest.raises(UserError, match=r"has \.csv files, whose records hold no list of messages"):
        bring(tmp_path / "a.csv", tmp_path)
    with pytest.raises(UserError, match=r"gives no conversations: 1 records read, 1 bad, the first: b\.jsonl:1 has no"):
        bring(write(tmp_path / "b.jsonl", {"messages": CHAT[:1]}), tmp_path, on_bad_row="skip")
    with pytest.raises(UserError, match="split: 'train' is for hub datasets"):
        bring(write(tmp_path / "c.jsonl", {"messages": CHAT}), tmp_path, split="train")


def test_generated_conversations_are_clean(tmp_path: Path):
    params = SourceTrajectoriesParams(dataset="hub:org/chats@v1", split="test", messages_field="chat").smoke()
    stage = SourceTrajectories(params)
    stage.preflight()
    context = Context(inputs={}, out=tmp_path / "made", scratch=tmp_path / "scratch")
    stage.run(context)
    made = Dataset(context.output("trajectories"))
    cleaned = Context(inputs={"trajectories": made}, out=tmp_path / "clean", scratch=tmp_path / "scratch")
    AgentClean(CleanParameters()).run(cleaned)
    assert context.results["trajectories"] == cleaned.results["read"] == 32
    assert cleaned.results["kept"] >= 30, "but for repetitions"


def test_planning_imports_nothing_heavy():
    code = "import sys, stages.source.trajectories\nprint({'torch', 'pyarrow', 'datasets'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
