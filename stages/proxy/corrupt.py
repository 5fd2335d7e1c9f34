"""`proxy.corrupt`: text that is known to be worse, so that one can see whether a ranking notices."""

from __future__ import annotations

import random
from collections.abc import Mapping
from itertools import islice
from typing import Annotated, ClassVar, Self

from pydantic import Field

from stages.artifacts import Dataset, DatasetCard
from stages.stage import Context, Input, Output, Parameters, Stage


class CorruptParameters(Parameters):
    """How much is spoilt."""

    share: Annotated[float, Field(ge=0, le=1)] = 1.0
    """Share of the documents whose words are shuffled; which ones is drawn from the seed and their text."""

    def smoke(self) -> Self:
        """As it is: spoiling costs nothing beside reading."""
        return self


class ProxyCorrupt(Stage):
    """Shuffle the words of documents: a recipe that is known to be bad, for a comparison of recipes to find.

    The same words, in an order that means nothing; lines and blanks are lost. What a ranking of recipes is worth shows
    in where it puts this one.
    """

    Params = CorruptParameters
    inputs: ClassVar[Mapping[str, Input]] = {"text": Input(Dataset, schema="text")}
    outputs: ClassVar[Mapping[str, Output]] = {"dataset": Output(Dataset, schema="text")}
    metrics = ("documents", "shuffled", "bytes")
    params: CorruptParameters

    def run(self, context: Context) -> None:
        """Read, shuffle and write, a batch of documents at a time."""
        from stages.data.reading import BATCH_DOCUMENTS, read_documents
        from stages.data.shards import TEXT, ShardWriter

        text, out = context.dataset("text"), context.output("dataset")
        counts = {"documents": 0, "shuffled": 0, "bytes": 0}
        with ShardWriter(out, TEXT) as writer:
            left = read_documents(text.shards)
            while documents := list(islice(left, BATCH_DOCUMENTS)):
                spoilt = [shuffled(document, self.params.share, context.seed) for document in documents]
                writer.write_texts(spoilt)
                counts["documents"] += len(spoilt)
                counts["shuffled"] += sum(a != b for a, b in zip(documents, spoilt, strict=True))
                counts["bytes"] += sum(len(document.encode()) for document in spoilt)
                context.progress(counts["documents"], text.card.num_rows, "documents")
        context.metrics(**counts)
        DatasetCard(
            schema="text",
            num_rows=counts["documents"],
            num_bytes=counts["bytes"],
            licence=text.card.licence,
            source=text.card.source,
        ).write(out)


def shuffled(document: str, share: float, seed: int) -> str:
    """`document` with its words in random order, or as it is for those outside `share`. A function of text and seed."""
    draw = random.Random(f"{seed}:{document}")
    if draw.random() >= share:
        return document
    words = document.split()
    draw.shuffle(words)
    return " ".join(words)
