"""A collection of documents on disk with a full-text index: SQLite FTS5, ranked by BM25, in one file.

Words are stemmed (Porter) and without accents; a word of the title counts as three of the text. A query is its words:
any of them may match, nothing in it is an operator, and words that nearly every text has count only where there are no
others.
"""

from __future__ import annotations

import re
import sqlite3
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from stages.data.marks import MARKS
from stages.errors import UserError

FILE: Final = "index.sqlite"
MOST_QUERY_WORDS: Final = 64
SNIPPET_WORDS: Final = 10
TITLE_WORDS: Final = 8
"""Of a document that has no title of its own."""
_COMMON: Final = """
a about also an and are as at be been but by can did do does for from had has have he her his i in into is it its of on
or s she that the their them there they this to was were what when where which who whose will with
"""
COMMON: Final = frozenset(_COMMON.split())
"""English words that tell documents apart least, and take most of the time to rank by."""
_WORD: Final = re.compile(rf"\w[\w{MARKS}]*")
_SEARCH: Final = f"""
SELECT rowid, title, snippet(documents, 1, '', '', '…', {SNIPPET_WORDS}) FROM documents
WHERE documents MATCH ? ORDER BY bm25(documents, 3.0, 1.0), rowid LIMIT ?
"""


@dataclass(frozen=True)
class Document:
    """A document by its number, counted from 1."""

    id: int
    title: str
    text: str


@dataclass(frozen=True)
class Hit:
    """What a search shows of a document: the part of its text that fits best."""

    id: int
    title: str
    snippet: str


class Collection:
    """Reads the index in `directory`, from any thread and, once pickled, any process.

    Raises UserError when there is none, or the file is not one.
    """

    def __init__(self, directory: Path) -> None:
        require_index(directory)
        self.file = directory / FILE
        self._local = threading.local()
        try:
            self._len: int = self._rows("SELECT max(rowid) FROM documents")[0][0] or 0
        except sqlite3.DatabaseError as error:
            raise UserError(f"{self.file} is no index of documents: {error}", fix="make it again") from error

    def __len__(self) -> int:
        return self._len

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.file.parent,)

    def prepare(self) -> None:
        """Load what the first search would load: nothing here."""

    def search(self, query: str, limit: int) -> list[Hit]:
        """The documents that fit `query` best, best first; none for a query without words."""
        words = list(dict.fromkeys(_WORD.findall(query.lower())))
        telling = [word for word in words if word not in COMMON] or words
        if not telling:
            return []
        rows = self._rows(_SEARCH, " OR ".join(f'"{word}"' for word in telling[:MOST_QUERY_WORDS]), limit)
        return [Hit(*row) for row in rows]

    def read(self, number: int) -> Document | None:
        """The document of that number, None where there is none."""
        return self.document(number) if 1 <= number <= len(self) else None

    def document(self, number: int) -> Document:
        """The document of a number that is one."""
        ((title, text),) = self._rows("SELECT title, text FROM documents WHERE rowid = ?", number)
        return Document(number, title, text)

    def documents(self) -> Iterator[Document]:
        """All documents, in the order of their numbers."""
        for row in self._connection().execute("SELECT rowid, title, text FROM documents ORDER BY rowid"):
            yield Document(*row)

    def _rows(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        return self._connection().execute(query, values).fetchall()

    def _connection(self) -> sqlite3.Connection:
        if not hasattr(self._local, "connection"):
            address = f"{self.file.resolve().as_uri()}?mode=ro&immutable=1"
            self._local.connection = sqlite3.connect(address, uri=True)
        return self._local.connection


def require_index(directory: Path) -> None:
    """Raise UserError where `directory` holds no index."""
    if not (directory / FILE).is_file():
        raise UserError(f"no {FILE} in {directory}", fix="make the index with the stage `agent.index`")


def build(directory: Path, documents: Iterable[tuple[str, str]]) -> Collection:
    """Write the index of `documents` (title, text) into `directory`: equal documents give equal bytes."""
    file = directory / FILE
    file.unlink(missing_ok=True)
    connection = sqlite3.connect(file, isolation_level=None)
    try:
        connection.execute("PRAGMA journal_mode = OFF")
        connection.execute("PRAGMA synchronous = OFF")
        connection.execute("BEGIN")
        connection.execute("CREATE VIRTUAL TABLE documents USING fts5(title, text, tokenize = 'porter unicode61')")
        connection.executemany("INSERT INTO documents (title, text) VALUES (?, ?)", documents)
        connection.execute("INSERT INTO documents (documents) VALUES ('optimize')")
        connection.execute("COMMIT")
        connection.execute("VACUUM")
    finally:
        connection.close()
    return Collection(directory)


def split_title(text: str, separator: str) -> tuple[str, str]:
    """A document's title and the rest: cut at the first `separator`, else its first words as title of the whole."""
    title, found, rest = text.partition(separator) if separator else (text, "", "")
    if found and title.strip() and rest.strip() and "\n" not in title:
        return title.strip(), rest.strip()
    words = text.split()
    return " ".join(words[:TITLE_WORDS]) + ("…" if len(words) > TITLE_WORDS else ""), text.strip()
