"""`agent.index`: documents become a collection that an agent can search and read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Self

from pydantic import Field

from stages.agent.environment.ranking import Ranking, require_encoder_tools
from stages.artifacts import Dataset, Model, Report, write_report
from stages.errors import UserError
from stages.stage import Context, Input, Output, Parameters, Stage

if TYPE_CHECKING:
    from stages.agent.environment.collection import Collection


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
    ranking: Ranking = "bm25"
    """What `search` ranks by: words (BM25), meaning (`dense`: cosine of an encoder's vectors), or both, fused by rank.
    All but `bm25` need the input `encoder`."""

    def smoke(self) -> Self:
        """A thousand documents at most."""
        return self.replaced(limit=min(self.limit or 1000, 1000))


class AgentIndex(Stage):
    """Index a text dataset for the tools `search` (BM25 in SQLite FTS5, a sentence encoder, or both) and `visit`.

    The result is a `text` dataset with a column `title`, and `index.sqlite` beside it; with `encoder` (a sentence
    encoder from `source.model`), the documents' vectors and the encoder too. What is ranked by, how many results and
    how much of a document the tools show is part of it, so that all stages that use the collection see the same tools.
    """

    Params = IndexParameters
    inputs: ClassVar[Mapping[str, Input]] = {
        "text": Input(Dataset, schema="text"),
        "encoder": Input(Model, optional=True),
    }
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
        if self.params.ranking != "bm25":
            require_encoder_tools()

    def check(self, inputs: Mapping[str, Any]) -> None:
        """There is an encoder where one is needed, and nowhere else."""
        ranking, encoder = self.params.ranking, inputs.get("encoder")
        if ranking != "bm25" and encoder is None:
            fix = "give one: source.model with model: hub:sentence-transformers/all-MiniLM-L6-v2@REVISION, or the like"
            raise UserError(f"ranking: {ranking} needs the input encoder", fix=fix)
        if ranking == "bm25" and encoder is not None:
            raise UserError("the input encoder is given, and ranking: bm25 has no use for it", fix="set ranking: dense")

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
        self._embed(context, collection)
        ToolSettings(self.params.search_results, self.params.visit_characters, self.params.ranking).write(out)
        titles, num_bytes = len({title for title, _ in documents}), sum(len(text.encode()) for _, text in documents)
        context.metrics(documents=len(collection), titles=titles, bytes=num_bytes)
        write_report(context.output("report"), "Index", context.results, {"parameters": self.params.identity()})

    def _embed(self, context: Context, collection: Collection) -> None:
        if self.params.ranking == "bm25":
            return
        from stages.agent.environment.dense import embed
        from stages.source.checkpoint import is_sentence_encoder

        encoder = context.model("encoder").path
        if not is_sentence_encoder(encoder):
            context.say("the encoder is no sentence encoder (no modules.json): vectors are means of its last states")
        embed(context.output("index"), encoder, collection, context.progress)

    def _documents(self, source: Dataset) -> Iterator[tuple[str, str]]:
        from stages.agent.environment.collection import split_title
        from stages.data.reading import read_documents

        for text in islice(read_documents(source.shards), self.params.limit):
            yield split_title(text, self.params.title_separator)
