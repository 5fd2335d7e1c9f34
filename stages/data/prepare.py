"""`data.prepare`: turn documents into packed windows of token ids, with some documents held out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import Field

from stages.artifacts import Dataset, DatasetCard, Model, Report, write_report
from stages.errors import UserError
from stages.evaluate.matching import text_config
from stages.stage import Context, Input, Output, Parameters, Stage

if TYPE_CHECKING:
    from stages.data.corpus import Corpus
    from stages.data.packing import Packer


class PrepareDataParams(Parameters):
    """How documents are cleaned, split and packed."""

    sequence_length: Annotated[int, Field(ge=2)] = 512
    """Tokens in each window."""
    heldout_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.05
    """Share of the documents to hold out. Which ones depends on their text alone: the same document is always on the
    same side, in every corpus and for every seed."""
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    """Tokens of `train` at most; the held-out windows do not depend on it."""
    max_heldout_tokens: Annotated[int, Field(ge=1)] = 1_000_000
    """Tokens of `heldout` at most. Reading ends when both are full."""
    separator: Literal["eos", "blank-line"] = "eos"
    """What stands between documents: the tokenizer's end-of-text token, or an empty line."""
    min_characters: Annotated[int, Field(ge=0)] = 0
    """Documents with fewer characters are dropped."""

    def smoke(self) -> Self:
        """Short windows, and enough documents on both sides."""
        return self.replaced(
            sequence_length=min(self.sequence_length, 32), heldout_fraction=max(self.heldout_fraction, 0.2)
        )


class PrepareData(Stage):
    """Normalise, deduplicate, split, tokenise and pack documents for a model.

    Text becomes NFC with plain line ends; empty, short and repeated documents are dropped. The split is by document, on
    a hash of its text. Documents go through in an order drawn from the seed, joined by a separator, in windows of
    `sequence_length` tokens that may span documents. The tail that fills no window is dropped and counted.
    """

    Params = PrepareDataParams
    inputs: ClassVar[Mapping[str, Input]] = {"text": Input(Dataset, schema="text"), "model": Input(Model)}
    outputs: ClassVar[Mapping[str, Output]] = {
        "train": Output(Dataset, schema="tokens"),
        "heldout": Output(Dataset, schema="tokens"),
        "report": Output(Report),
    }
    metrics = ("documents", "dropped_*", "train_*", "heldout_*")
    params: PrepareDataParams

    def preflight(self) -> None:
        """The limits hold a window at least."""
        for name in ("max_tokens", "max_heldout_tokens"):
            limit, length = getattr(self.params, name), self.params.sequence_length
            if limit is not None and limit < length:
                raise UserError(
                    f"{name}: {limit} is less than one window of sequence_length: {length}",
                    fix=f"set {name} to {length} or more",
                )

    def check(self, inputs: Mapping[str, Any]) -> None:
        """The model has a tokenizer, and its context holds a window."""
        model: Model = inputs["model"]
        if not model.tokenizer_fingerprint:
            raise UserError(
                f"the model in {model.path} has no tokenizer.json",
                fix="give a fast tokenizer: `AutoTokenizer.from_pretrained(…).save_pretrained(…)` makes it",
            )
        context = text_config(model.config).get("max_position_embeddings")
        if context and self.params.sequence_length > context:
            raise UserError(
                f"sequence_length: {self.params.sequence_length} exceeds the model's context of {context} tokens",
                fix=f"set sequence_length to {context} or less",
            )

    def run(self, context: Context) -> None:
        """Two passes: normalise everything once, then pack it in the order of the seed."""
        from stages.data.corpus import build_corpus

        text = context.dataset("text")
        corpus = build_corpus(
            text.shards,
            context.scratch / "documents.arrow",
            self.params.min_characters,
            context.progress,
            text.card.num_rows,
        )
        sides = self._pack(context, corpus)
        corpus.file.unlink()
        self._require_windows(sides, len(corpus.digests))
        for name, packer in sides.items():
            self._card(context, packer).write(context.output(name))
        context.metrics(**_counts(corpus, sides))
        write_report(context.output("report"), "Prepared data", context.results, self.params.identity())

    def _pack(self, context: Context, corpus: Corpus) -> dict[str, Packer]:
        from stages.data.corpus import is_heldout
        from stages.data.encoding import Encoder
        from stages.data.packing import Packer

        encoder, length = Encoder(context.model("model")), self.params.sequence_length
        separator = encoder.separator(self.params.separator)
        limits = {"train": self.params.max_tokens, "heldout": self.params.max_heldout_tokens}
        sides = {
            name: Packer(context.output(name), length, separator, limit // length if limit else None)
            for name, limit in limits.items()
        }
        done = 0
        for texts in corpus.read(context.seed):
            for text, (ids, starts) in zip(texts, encoder.encode(texts), strict=True):
                side = "heldout" if is_heldout(text, self.params.heldout_fraction) else "train"
                sides[side].add(text, ids, starts)
            done += len(texts)
            context.progress(done, len(corpus.digests), "documents")
            if all(packer.full for packer in sides.values()):
                break
        for packer in sides.values():
            packer.close()
        return sides

    def _require_windows(self, sides: Mapping[str, Packer], num_documents: int) -> None:
        for name, packer in sides.items():
            if packer.num_windows == 0:
                raise UserError(
                    f"{name} has {packer.num_tail_tokens} tokens of {packer.num_documents} documents (of "
                    f"{num_documents} in all), less than one window of sequence_length: {self.params.sequence_length}",
                    fix=f"shorten sequence_length, give more text, or {'raise' if name == 'heldout' else 'lower'} "
                    f"heldout_fraction: {self.params.heldout_fraction}",
                )

    def _card(self, context: Context, packer: Packer) -> DatasetCard:
        text = context.dataset("text").card
        return DatasetCard(
            schema="tokens",
            num_rows=packer.num_windows,
            num_bytes=packer.num_bytes,
            num_tokens=packer.num_windows * packer.length,
            sequence_length=packer.length,
            tokenizer=context.model("model").tokenizer_fingerprint,
            licence=text.licence,
            source=text.source,
        )


def _counts(corpus: Corpus, sides: Mapping[str, Packer]) -> dict[str, float]:
    counts = {
        "documents": corpus.num_read,
        "dropped_empty": corpus.num_empty,
        "dropped_short": corpus.num_short,
        "dropped_duplicates": corpus.num_duplicates,
    }
    for name, packer in sides.items():
        counts[f"{name}_documents"] = packer.num_documents
        counts[f"{name}_windows"] = packer.num_windows
        counts[f"{name}_tokens"] = packer.num_windows * packer.length
        counts[f"{name}_bytes"] = packer.num_bytes
        counts[f"{name}_tail_tokens"] = packer.num_tail_tokens
    return counts
