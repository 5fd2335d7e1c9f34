"""The tool of a writer of reports: it searches a collection and brings what it finds."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final

from stages.agent.environment.base import Observation, Tool
from stages.agent.environment.collection import Collection
from stages.agent.report.state import Evidence
from stages.agent.report.view import without_citations

MOST_GATHERED: Final = 8_000
"""Characters of documents that one search brings."""


@dataclass(frozen=True)
class Gather(Tool):
    """Searches a collection and reads what it finds."""

    name: ClassVar[str] = "gather"
    description: ClassVar[str] = "find documents and read them"
    parameters: ClassVar[Mapping[str, str]] = {"queries": "words to look for, a query a line"}

    collection: Collection
    results: int = 3
    """Documents of one search at most: the best of each query in turn."""
    characters: int = 400
    """Of each document."""

    def prepare(self) -> None:
        """Load the encoder of the collection, where it has one."""
        self.collection.prepare()

    def __call__(self, **arguments: Any) -> str:
        """The documents as JSON, each `[id, title, text]`."""
        found = self.find(str(arguments["queries"]).splitlines())
        return json.dumps([[one.id, one.title, one.text] for one in found], ensure_ascii=False)

    def find(self, queries: Sequence[str]) -> list[Evidence]:
        """The documents, best first."""
        ranked = [[hit.id for hit in self.collection.search(query, self.results)] for query in queries]
        in_turn = [ids[place] for place in range(self.results) for ids in ranked if place < len(ids)]
        numbers = list(dict.fromkeys(in_turn))[: self.results]
        most = min(self.characters, MOST_GATHERED // max(1, len(numbers)))
        return [_evidence(self.collection, number, most) for number in numbers]


def gathered(observation: Observation) -> tuple[Evidence, ...] | None:
    """What a search has brought; None where it failed, or what it brought was cut off on the way."""
    try:
        return None if observation.failure else tuple(Evidence(*one) for one in json.loads(observation.text))
    except ValueError:
        return None


def _evidence(collection: Collection, number: int, most: int) -> Evidence:
    document = collection.document(number)
    text = without_citations(document.text)  # a document's own footnotes would be taken for documents of ours
    return Evidence(number, document.title, text if len(text) <= most else text[:most].rstrip() + "…")
