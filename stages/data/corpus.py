"""Documents made uniform, told apart by their content, and put in an order that does not depend on how they came.

The documents are normalised once into an Arrow file that is then mapped, so that they can be read in any order while
memory holds only their digests.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from stages.data.shards import TEXT

BATCH_DOCUMENTS = 256
"""Documents handled at once."""

Progress = Callable[[float, float, str], None]


def normalise(text: str) -> str:
    """`text` in Unicode NFC, with plain line ends, no trailing blanks on lines, at most one blank line in a row."""
    text = unicodedata.normalize("NFC", text).replace("\r\n", "\n").replace("\r", "\n")
    text = re.sub(r"[ \t]+\n", "\n", text)
    return re.sub(r"\n{3,}", "\n\n", text).strip()


def document_digest(text: str, salt: str = "") -> bytes:
    """16 bytes that depend on the text (and the salt) alone."""
    return hashlib.blake2b(text.encode(), digest_size=16, key=salt.encode()).digest()


def is_heldout(text: str, fraction: float) -> bool:
    """Whether a document belongs to the held-out side: a function of its text, whatever else the corpus holds."""
    return int.from_bytes(document_digest(text, "split")[:8], "big") < fraction * 2**64


@dataclass
class Corpus:
    """Unique normalised documents on disk, and what was dropped on the way."""

    file: Path
    num_read: int = 0
    num_empty: int = 0
    num_short: int = 0
    num_duplicates: int = 0
    digests: list[bytes] = field(default_factory=list)
    """Of each document kept, in the order of the file."""
    batch_ends: list[int] = field(default_factory=list)
    """Documents up to the end of each record batch of the file."""

    def read(self, seed: int) -> Iterator[list[str]]:
        """The documents in the order of `seed`, in batches. The order depends on seed and texts alone."""
        keys = [hashlib.blake2b(digest, digest_size=8, key=str(seed).encode()).digest() for digest in self.digests]
        order = np.argsort(np.frombuffer(b"".join(keys), dtype=">u8"), kind="stable")
        with pa.memory_map(str(self.file)) as source, pa.ipc.open_file(source) as reader:
            for start in range(0, len(order), BATCH_DOCUMENTS):
                yield [self._document(reader, index) for index in order[start : start + BATCH_DOCUMENTS].tolist()]

    def _document(self, reader: pa.ipc.RecordBatchFileReader, index: int) -> str:
        number = bisect_right(self.batch_ends, index)
        first = self.batch_ends[number - 1] if number else 0
        return reader.get_batch(number).column(0)[index - first].as_py()


def build_corpus(shards: list[Path], file: Path, min_characters: int, progress: Progress, total: int) -> Corpus:
    """Normalise the `text` column of `shards` into `file`, dropping empty, short and repeated documents."""
    corpus, seen = Corpus(file), set[bytes]()
    file.parent.mkdir(parents=True, exist_ok=True)
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_file(sink, TEXT) as writer:
        for texts in _batches(shards):
            kept = [text for text in map(normalise, texts) if _keep(text, min_characters, corpus, seen)]
            if kept:
                writer.write_batch(pa.record_batch({"text": pa.array(kept, pa.string())}))
                corpus.batch_ends.append(len(corpus.digests))
            progress(corpus.num_read, total, "documents")
    return corpus


def _batches(shards: list[Path]) -> Iterator[list[str]]:
    for shard in shards:
        for batch in pq.ParquetFile(shard).iter_batches(BATCH_DOCUMENTS, columns=TEXT.names):
            yield [text or "" for text in batch.column(0).to_pylist()]


def _keep(text: str, min_characters: int, corpus: Corpus, seen: set[bytes]) -> bool:
    corpus.num_read += 1
    digest = document_digest(text)
    if not text:
        corpus.num_empty += 1
    elif len(text) < min_characters:
        corpus.num_short += 1
    elif digest in seen:
        corpus.num_duplicates += 1
    else:
        seen.add(digest)
        corpus.digests.append(digest)
        return True
    return False
