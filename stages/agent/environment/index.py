"""`agent.index`: documents become a collection that an agent can search and read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Annotated, ClassVar, Self

from pydantic import Field

from stages.artifacts import Dataset, Report, write_report
from stages.errors import UserError
from stages.stage import Context, Input, Output, Parameters, Stage


class IndexParameters(Parameters):
    """What is indexed, and how the tools over it answer."""

    title_separator: str = " -- "
    """What stands between a document's title and its text. A document without it is titled by its first words."""
    limit: Annotated[int, Field(ge=1)] | None = None
    """Documents to index at most, from the front."""
    search_results: Annotated[int, Field(ge=1, le=50)] = 3
    """Documents that `search` lists."""
    visit_characters: Annotated[int, Field(ge=100)] = 1200
    """Characters of a document that `visit` shows."""

    def smoke(self) -> Self:
        """A thousand documents at most."""
        return self.replaced(limit=min(self.limit or 1000, 1000))


class AgentIndex(Stage):
    """Index a text dataset for the tools `search` (BM25 in SQLite FTS5) and `visit`.

    The result is a `text` dataset with a column `title`, and `index.sqlite` beside it. How many results and how much of
    a document the tools show is part of it, so that every stage that uses the collection sees the same tools.
    """

    Params = IndexParameters
    inputs: ClassVar[Mapping[str, Input]] = {"text": Input(Dataset, schema="text")}
    outputs: ClassVar[Mapping[str, Output]] = {"index": Output(Dataset, schema="text"), "report": Output(Report)}
    metrics = ("documents", "titles", "bytes")
    params: IndexParameters

    def preflight(self) -> None:
        """This Python's SQLite has full-text search."""
        import sqlite3

        with sqlite3.connect(":memory:") as connection:
            options = {name for (name,) in connection.execute("PRAGMA compile_options")}
        if "ENABLE_FTS5" not in options:
            raise UserError("this Python's SQLite has no FTS5", fix="use a Python whose SQLite has it, as most do")

    def run(self, context: Context) -> None:
        """Split titles, write the documents, index them."""
        from stages.agent.conversation.records import write_documents
        from stages.agent.environment.collection import build
        from stages.agent.environment.research import ToolSettings

        source, out = context.dataset("text"), context.output("index")
        documents = list(self._documents(source))
        if not documents:
            raise UserError(f"{source.path} has no documents", fix="give text to search in")
        card = source.card
        write_documents(out, documents, licence=card.licence, source=card.source)
        collection = build(out, documents)
        ToolSettings(self.params.search_results, self.params.visit_characters).write(out)
        titles, num_bytes = len({title for title, _ in documents}), sum(len(text.encode()) for _, text in documents)
        context.metrics(documents=len(collection), titles=titles, bytes=num_bytes)
        write_report(context.output("report"), "Index", context.results, {"parameters": self.params.identity()})

    def _documents(self, source: Dataset) -> Iterator[tuple[str, str]]:
        from stages.agent.environment.collection import split_title
        from stages.data.reading import read_documents

        for text in islice(read_documents(source.shards), self.params.limit):
            yield split_title(text, self.params.title_separator)
