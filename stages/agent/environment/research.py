"""The research environment: questions about a collection of documents, with the tools `search` and `visit`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Final

from stages.agent.conversation.records import read_tasks
from stages.agent.environment.answers import exact_match, f1
from stages.agent.environment.base import Environment, Task, Tool
from stages.agent.environment.collection import Collection, require_index
from stages.agent.environment.dense import RANKINGS
from stages.agent.environment.ranking import Ranking
from stages.artifacts import Dataset, write_json
from stages.errors import UserError

SETTINGS: Final = "tools.json"


@dataclass(frozen=True)
class Search(Tool):
    """Lists the documents that fit a query best, a line each."""

    name: ClassVar[str] = "search"
    description: ClassVar[str] = "find documents by words; gives their ids and titles"
    parameters: ClassVar[Mapping[str, str]] = {"query": "words to look for"}

    collection: Collection
    results: int = 3

    def prepare(self) -> None:
        """Load the encoder, where there is one."""
        self.collection.prepare()

    def __call__(self, **arguments: Any) -> str:
        """`[id] title: the part that fits`, best first."""
        hits = self.collection.search(str(arguments["query"]), self.results)
        lines = (f"[{hit.id}] {' '.join(f'{hit.title}: {hit.snippet}'.split())}" for hit in hits)
        return "\n".join(lines) or "Nothing found."


@dataclass(frozen=True)
class Visit(Tool):
    """Shows a document."""

    name: ClassVar[str] = "visit"
    description: ClassVar[str] = "read the document of an id"
    parameters: ClassVar[Mapping[str, str]] = {"id": "number of the document"}

    collection: Collection
    characters: int = 1200

    def __call__(self, **arguments: Any) -> str:
        """Its title and the beginning of its text. Raises ValueError for what is no document's id."""
        given = str(arguments["id"]).strip()
        document = self.collection.read(int(given)) if given.isdecimal() and len(given) < 10 else None
        if document is None:
            raise ValueError(f"there is no document {given[:40]!r}")
        text = document.text
        cut = text if len(text) <= self.characters else text[: self.characters].rstrip() + "…"
        return f"{document.title}\n{cut}"


@dataclass(frozen=True)
class ToolSettings:
    """How the tools search and how much they show: a property of the index, kept beside it."""

    results: int = 3
    """Documents that `search` lists."""
    characters: int = 1200
    """Characters of a document that `visit` shows."""
    ranking: Ranking = "bm25"
    """What `search` ranks by."""

    def write(self, directory: Path) -> None:
        """Keep the settings with the index in `directory`."""
        write_json(directory / SETTINGS, asdict(self))

    @classmethod
    def read(cls, directory: Path) -> ToolSettings:
        """The settings of the index in `directory`. Raises UserError when they are missing or damaged."""
        fix = "make the index with the stage `agent.index`"
        try:
            settings = cls(**json.loads((directory / SETTINGS).read_bytes()))
        except (OSError, ValueError, TypeError) as error:
            raise UserError(f"{directory} has no sound {SETTINGS}: {error}", fix=fix) from error
        if settings.ranking not in RANKINGS:
            known = ", ".join(RANKINGS)
            raise UserError(f"{directory / SETTINGS} ranks by {settings.ranking!r}, known are {known}", fix=fix)
        return settings


def open_collection(index: Path) -> Collection:
    """The collection in a directory, which searches as its settings say. Raises UserError as it and they do."""
    require_index(index)
    return RANKINGS[ToolSettings.read(index).ranking](index)


def make_tools(index: Path) -> tuple[Collection, dict[str, Tool]]:
    """The collection in a directory and the tools over it. Raises UserError when it is missing or damaged."""
    collection, settings = open_collection(index), ToolSettings.read(index)
    search, visit = Search(collection, settings.results), Visit(collection, settings.characters)
    return collection, {search.name: search, visit.name: visit}


@dataclass(frozen=True)
class ResearchEnvironment(Environment):
    """Questions over a collection; the reward of an answer is its token F1, success is an exact match."""

    tools: Mapping[str, Tool]
    tasks: Sequence[Task]

    def reward(self, task: Task, answer: str) -> float:
        """Token F1."""
        return f1(answer, task.answers)

    def success(self, task: Task, answer: str, reward: float) -> bool:  # noqa: ARG002, a full F1 allows another order
        """Exact match up to normalisation."""
        return exact_match(answer, task.answers)


def open_environment(index: Dataset, questions: Dataset) -> ResearchEnvironment:
    """The environment of an index and the questions about it.

    Raises UserError when the index is missing or damaged, or a question has no answer.
    """
    return ResearchEnvironment(make_tools(index.path)[1], tuple(read_tasks(questions)))
