"""Topics and exercises as the rows of datasets."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final, TypeVar

import pyarrow as pa
from pydantic import TypeAdapter, ValidationError

from stages.agent.conversation.records import MESSAGES, read_rows, write_rows
from stages.agent.report.exercises import Exercise
from stages.agent.report.topics import Topic
from stages.artifacts import Dataset
from stages.errors import UserError

_COLUMNS: Final = pa.schema(
    [("messages", MESSAGES), ("id", pa.string()), ("kind", pa.string()), ("report", pa.string())]
)
TOPIC: Final = "report"
"""The kind of a topic's row; an exercise's is its skill."""
T = TypeVar("T")
_TOPIC: Final = TypeAdapter(Topic)
_EXERCISE: Final = TypeAdapter(Exercise)


def write_topics(directory: Path, topics: Iterable[Topic], **about: str) -> None:
    """Write topics as a `messages` dataset; `about` are `licence` and `source` of its card."""
    rows = [
        _row([{"role": "user", "content": topic.query}], topic.id, TOPIC, _TOPIC.dump_json(topic)) for topic in topics
    ]
    _write(directory, rows, about)


def write_exercises(directory: Path, exercises: Iterable[Exercise], **about: str) -> None:
    """Write exercises as a `messages` dataset: their prompts."""
    rows = [
        _row([message.record() for message in one.asked], one.id, one.skill, _EXERCISE.dump_json(one))
        for one in exercises
    ]
    _write(directory, rows, about)


def read_topics(dataset: Dataset) -> list[Topic]:
    """The topics in a dataset. Raises UserError when it holds something else, or nothing."""
    rows = _rows(dataset)
    if any(row["kind"] != TOPIC for row in rows):
        raise UserError(f"{dataset.path} has exercises, no topics", fix="give the topics of `agent.report_topics`")
    return [_read(_TOPIC, row, dataset) for row in rows]


def read_exercises(dataset: Dataset) -> list[Exercise]:
    """The exercises in a dataset. Raises UserError when it holds something else, or nothing."""
    return [_read(_EXERCISE, row, dataset) for row in _rows(dataset)]


def holds_topics(dataset: Dataset) -> bool:
    """Whether a dataset holds topics, rather than exercises. Raises UserError when it holds neither."""
    return _rows(dataset)[0]["kind"] == TOPIC


def _row(messages: list[dict[str, str]], name: str, kind: str, content: bytes) -> dict[str, Any]:
    return {"messages": messages, "id": name, "kind": kind, "report": content.decode()}


def _read(adapter: TypeAdapter[T], row: dict[str, Any], dataset: Dataset) -> T:
    try:
        return adapter.validate_json(row["report"])
    except ValidationError as error:
        raise UserError(f"{dataset.path}: row {row['id']} is damaged: {error}", fix="make the dataset again") from error


def _rows(dataset: Dataset) -> list[dict[str, Any]]:
    rows = list(read_rows(dataset))
    if any(not set(_COLUMNS.names) <= row.keys() for row in rows):
        raise UserError(
            f"{dataset.path} has neither topics nor exercises of reports",
            fix="make them with `agent.report_topics` and `agent.report_expert`",
        )
    if not rows:
        raise UserError(f"{dataset.path} is empty", fix="ask for more topics, or index more documents")
    return rows


def _write(directory: Path, rows: list[dict[str, Any]], about: Mapping[str, str]) -> None:
    texts = (message["content"] for row in rows for message in row["messages"])
    write_rows(directory, "messages", _COLUMNS, rows, texts, about)
