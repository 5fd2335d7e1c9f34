"""Trajectories and tasks as the rows of datasets, written and read in one place."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from stages.agent.conversation.messages import Message, ToolCall, Trajectory
from stages.agent.environment.base import Task
from stages.artifacts import Dataset, DatasetCard, Schema
from stages.data.reading import read_batches
from stages.errors import UserError

MESSAGES: Final = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
_TRAJECTORIES: Final = pa.schema(
    [
        ("trajectory", MESSAGES),
        ("reward", pa.float64()),
        ("task", pa.string()),
        ("question", pa.string()),
        ("answers", pa.list_(pa.string())),
        ("ending", pa.string()),
        ("kind", pa.string()),
    ]
)
_TASKS: Final = pa.schema(
    [
        ("messages", MESSAGES),
        ("id", pa.string()),
        ("answers", pa.list_(pa.string())),
        ("solution", pa.string()),
        ("thoughts", pa.list_(pa.string())),
        ("kind", pa.string()),
    ]
)
_DOCUMENTS: Final = pa.schema([("text", pa.string()), ("title", pa.string())])


def write_trajectories(directory: Path, trajectories: Iterable[Trajectory], **about: str) -> None:
    """Write a `trajectories` dataset; `about` are `licence` and `source` of its card."""
    rows = [
        {
            "trajectory": [message.record() for message in found.messages],
            "reward": found.reward,
            "task": found.task,
            "question": found.question,
            "answers": list(found.answers),
            "ending": found.ending,
            "kind": found.kind,
        }
        for found in trajectories
    ]
    texts = (message["content"] for row in rows for message in row["trajectory"])
    write_rows(directory, "trajectories", _TRAJECTORIES, rows, texts, about)


def read_trajectories(dataset: Dataset) -> list[Trajectory]:
    """The trajectories as they were found: nothing of what they say is checked, see `agent.clean`."""
    return [_trajectory(number, row) for number, row in enumerate(read_rows(dataset))]


def sample_trajectories(dataset: Dataset, most: int) -> list[tuple[int, Trajectory]]:
    """At most `most` trajectories with the numbers of their rows, evenly spread over the dataset."""
    total = dataset.card.num_rows
    chosen = {number * total // most for number in range(most)} if total > most else set(range(total))
    return [(number, _trajectory(number, row)) for number, row in enumerate(read_rows(dataset)) if number in chosen]


def write_tasks(directory: Path, tasks: Iterable[Task], **about: str) -> None:
    """Write tasks as a `messages` dataset: the question is what the user says."""
    rows = [
        {
            "messages": [{"role": "user", "content": task.question}],
            "id": task.id,
            "answers": list(task.answers),
            "solution": json.dumps([[call.name, dict(call.arguments)] for call in task.solution], ensure_ascii=False),
            "thoughts": list(task.thoughts),
            "kind": task.kind,
            "data": task.data,
        }
        for task in tasks
    ]
    columns = _TASKS.append(pa.field("data", pa.string())) if any(row["data"] for row in rows) else _TASKS
    write_rows(directory, "messages", columns, rows, (row["messages"][0]["content"] for row in rows), about)


def read_tasks(dataset: Dataset) -> list[Task]:
    """The tasks of a `messages` dataset with a column `answers`; a question is what the user says last.

    Raises UserError without rows, for a row that lacks question or answers or whose thoughts do not go with its
    solution, and where two rows have one id.
    """
    tasks = [
        _task(f"row {number} of {dataset.path}", str(number), row) for number, row in enumerate(read_rows(dataset))
    ]
    if not tasks:
        raise UserError(f"{dataset.path} has no questions", fix="make more with `agent.questions`")
    name, times = Counter(task.id for task in tasks).most_common(1)[0]
    if times > 1:
        raise UserError(
            f"{times} of {len(tasks)} rows of {dataset.path} have the id {name!r}",
            fix="give every question an id of its own, or leave the column `id` out",
        )
    return tasks


def write_documents(directory: Path, documents: Iterable[tuple[str, str]], **about: str) -> None:
    """Write documents (title, text) as a `text` dataset."""
    rows = [{"title": title, "text": text} for title, text in documents]
    write_rows(directory, "text", _DOCUMENTS, rows, (row["text"] for row in rows), about)


def _task(where: str, number: str, row: Mapping[str, Any]) -> Task:
    asked = [message["content"] for message in row["messages"] or () if message["role"] == "user"]
    if not row.get("answers") or not asked:
        lacks, why = ("question", "nothing to ask") if row.get("answers") else ("answers", "nothing to reward")
        raise UserError(
            f"{where} has no {lacks}: there is {why}",
            fix="give `messages` in which a user asks and a column `answers` (a list of texts), such as "
            "`agent.questions` makes",
        )
    solution = tuple(ToolCall(name, arguments) for name, arguments in json.loads(row.get("solution") or "[]"))
    thoughts = tuple(row.get("thoughts") or ())
    if len(thoughts) not in (0, len(solution) + 1):
        raise UserError(
            f"{where} has {len(thoughts)} thoughts for a solution of {len(solution)} calls",
            fix=f"give {len(solution) + 1}, one before each call and one before the answer, or none",
        )
    return Task(
        id=row.get("id") or number,
        question=asked[-1],
        answers=tuple(row["answers"]),
        solution=solution,
        thoughts=thoughts,
        kind=row.get("kind") or "",
        data=row.get("data") or "",
    )


def _trajectory(number: int, row: Mapping[str, Any]) -> Trajectory:
    return Trajectory(
        task=row.get("task") or str(number),
        messages=tuple(_message(message) for message in row["trajectory"] or ()),
        reward=row["reward"] or 0.0,
        ending=row.get("ending") or "",
        question=row.get("question") or "",
        answers=tuple(row.get("answers") or ()),
        kind=row.get("kind") or "",
    )


def _message(record: Mapping[str, Any]) -> Message:
    role: Any = record["role"] or ""
    return Message(role, record["content"] or "")


def read_rows(dataset: Dataset) -> Iterator[dict[str, Any]]:
    """The rows of all shards, in order."""
    for shard in dataset.shards:
        for batch in read_batches(shard):
            yield from batch.to_pylist()


def write_rows(
    directory: Path,
    schema: Schema,
    columns: pa.Schema,
    rows: list[dict[str, Any]],
    texts: Iterable[str],
    about: Mapping[str, str],
) -> None:
    """Write a dataset of one shard, whose size is that of `texts`; `about` are `licence` and `source` of its card."""
    pq.write_table(pa.Table.from_pylist(rows, columns), directory / "shard-00000.parquet", compression="zstd")
    num_bytes = sum(len(text.encode()) for text in texts)
    DatasetCard(schema, num_rows=len(rows), num_bytes=num_bytes, **about).write(directory)
