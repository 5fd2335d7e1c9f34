"""Search by meaning: each document is a vector of a sentence encoder. Ranked by cosine, or by that and BM25 together.

The encoder lies beside the vectors, so that queries are encoded by what encoded the documents. A query is compared with
every document: what is found is exact.
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, get_args

import numpy as np

from stages.agent.environment.collection import SNIPPET_WORDS, Collection, Hit
from stages.agent.environment.ranking import Ranking, require_encoder_tools
from stages.errors import UserError
from stages.stage import Progress

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

VECTORS: Final = "vectors.npy"
ENCODER: Final = "encoder"
MOST_QUERY_CHARACTERS: Final = 2000
FUSED_DEPTH: Final = 100
"""Documents of each ranking that are fused."""
FUSION_CONSTANT: Final = 60
"""k of reciprocal rank fusion, as in Cormack et al., SIGIR 2009."""
_CHUNK: Final = 512
_BATCH: Final = 32


class DenseCollection(Collection):
    """A collection that is searched by the cosine between query and document.

    Raises UserError where the vectors or the encoder are missing, or of another index.
    """

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        require_encoder_tools()
        self._vectors = _read_vectors(directory, len(self))
        self._encoder: SentenceTransformer | None = None
        self._lock = threading.Lock()

    def prepare(self) -> None:
        """Load the encoder."""
        self._encoded("ready")

    def search(self, query: str, limit: int) -> list[Hit]:
        """The documents whose vectors are nearest to that of `query`, nearest first; none for an empty query."""
        query = " ".join(query.split())[:MOST_QUERY_CHARACTERS]
        if not query:
            return []
        cosines = self._vectors @ self._encoded(query)
        return [self._hit(int(place) + 1) for place in np.argsort(-cosines, kind="stable")[:limit]]

    def _encoded(self, query: str) -> np.ndarray:
        with self._lock:  # a tokenizer serves one thread at a time
            if self._encoder is None:
                self._encoder = _load(self.file.parent / ENCODER, device="cpu")
            return _encode(self._encoder, [query])[0]

    def _hit(self, number: int) -> Hit:
        document = self.document(number)
        words = document.text.split()
        return Hit(number, document.title, " ".join(words[:SNIPPET_WORDS]) + "…" * (len(words) > SNIPPET_WORDS))


class FusedCollection(DenseCollection):
    """A collection that is searched by words and by meaning: reciprocal rank fusion of both rankings."""

    def search(self, query: str, limit: int) -> list[Hit]:
        """The documents with the largest sum of 1 / (60 + rank), over the rankings that have them in their best 100."""
        by_words = Collection.search(self, query, FUSED_DEPTH)
        return fuse([by_words, super().search(query, FUSED_DEPTH)])[:limit]


RANKINGS: Final[Mapping[Ranking, type[Collection]]] = {
    "bm25": Collection,
    "dense": DenseCollection,
    "fused": FusedCollection,
}
assert tuple(RANKINGS) == get_args(Ranking)


def fuse(rankings: Sequence[Sequence[Hit]]) -> list[Hit]:
    """Hits by reciprocal rank fusion, best first; equals by number. A hit is shown as the first ranking shows it."""
    scores, shown = dict[int, float](), dict[int, Hit]()
    for ranking in rankings:
        for rank, hit in enumerate(ranking, start=1):
            scores[hit.id] = scores.get(hit.id, 0.0) + 1 / (FUSION_CONSTANT + rank)
            shown.setdefault(hit.id, hit)
    return [shown[number] for number in sorted(scores, key=lambda number: (-scores[number], number))]


def embed(directory: Path, encoder: Path, collection: Collection, progress: Progress) -> None:
    """Write the vectors of all documents of `collection`, float32 of unit length, and the `encoder` into `directory`.

    A document is its title and its text, as far as the encoder reads.
    """
    shutil.copytree(encoder, directory / ENCODER)
    model, total = _load(encoder), len(collection)
    shape = (total, _encode(model, [""]).shape[1])
    vectors = np.lib.format.open_memmap(directory / VECTORS, "w+", dtype=np.float32, shape=shape)
    for start in range(0, total, _CHUNK):
        end = min(start + _CHUNK, total)
        vectors[start:end] = _encode(model, [_text(collection, number) for number in range(start + 1, end + 1)])
        progress(end, total, "documents")
    vectors.flush()


def _read_vectors(directory: Path, expected: int) -> np.ndarray:
    file, fix = directory / VECTORS, "make the index again with the stage `agent.index` and an encoder"
    if not (directory / ENCODER / "config.json").is_file():
        raise UserError(f"no {ENCODER}/ in {directory}, which queries are encoded with", fix=fix)
    try:
        vectors = np.load(file, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read: {error}", fix=fix) from error
    if vectors.ndim != 2 or len(vectors) != expected:
        shape = " x ".join(map(str, vectors.shape))
        raise UserError(f"{file} is {shape}, and the index has {expected} documents", fix=fix)
    return vectors


def _text(collection: Collection, number: int) -> str:
    document = collection.document(number)
    return f"{document.title}\n{document.text}"


def _load(directory: Path, device: str | None = None) -> SentenceTransformer:
    import torch
    from sentence_transformers import SentenceTransformer

    from grafts.loader import quiet

    with quiet():
        return SentenceTransformer(
            str(directory), device=device, local_files_only=True, model_kwargs={"dtype": torch.float32}
        )


def _encode(encoder: SentenceTransformer, texts: Sequence[str]) -> np.ndarray:
    """Vectors of unit length, float32 [texts, dimensions]."""
    return encoder.encode(list(texts), batch_size=_BATCH, normalize_embeddings=True, show_progress_bar=False)
