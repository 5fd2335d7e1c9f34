"""`data.prepare`: turn documents into packed windows of token ids, with some documents held out."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import Field

from stages.artifacts import Dataset, DatasetCard, Model, Report, write_report
from stages.errors import StoppedError, UserError
from stages.evaluate.matching import text_config
from stages.stage import Context, Input, Output, Parameters, Stage

if TYPE_CHECKING:
    from stages.data.corpus import Corpus
    from stages.data.drops import Drops
    from stages.data.encoding import Encoded
    from stages.data.packing import Packer
    from stages.data.parallel import Workers
    from stages.data.screening import Portion, Screening


class PrepareDataParams(Parameters):
    """How documents are cleaned, filtered, split and packed."""

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
    attention: Literal["window", "document"] = "window"
    """What a token of `train` may attend to: its whole window, or only its own document, whose positions then count
    from 0. Stages that cannot keep documents apart refuse such data. `heldout` is always packed for whole windows."""
    min_characters: Annotated[int, Field(ge=0)] = 0
    """Documents with fewer characters are dropped."""
    max_characters: Annotated[int, Field(ge=1)] | None = None
    """Documents with more characters are dropped."""
    unicode: Literal["NFC", "NFKC"] = "NFC"
    """Unicode normal form. NFKC also makes compatible characters one: `ﬁ` as `fi`, full-width letters as plain ones."""
    white_space: Literal["collapse", "keep"] = "collapse"
    """`collapse` leaves at most one empty line in a row and nothing around a document; `keep` leaves both, for code."""
    language: Annotated[str, Field(pattern="^[a-z]{2,3}$")] | None = None
    """Documents in any other language (ISO 639-1, such as `en`) are dropped. Needs the extra `data`."""
    language_probability: Annotated[float, Field(ge=0, le=1)] = 0.65
    """Least probability of that language."""
    filters: tuple[Literal["gopher_quality", "gopher_repetition", "c4", "fineweb"], ...] = ()
    """Quality filters, in the order in which they are asked. Gopher's: arXiv 2112.11446; C4's, which also takes out
    lines: 1910.10683; FineWeb's own: 2406.17557. For English prose."""
    thresholds: dict[str, float] = {}
    """Other bounds than the papers', by rule: `{gopher_quality.min_words: 20}`."""
    deduplicate: Literal["none", "exact", "minhash"] = "exact"
    """`exact` drops documents equal to another after normalising; `minhash` also near-duplicates."""
    similarity: Annotated[float, Field(ge=0.3, le=1)] = 0.8
    """Jaccard similarity of the sets of word 5-grams of two documents, as MinHash estimates it, from which one goes."""
    contamination_words: Annotated[int, Field(ge=5)] = 13
    """Documents that share so many words in a row with a text of `evaluations` are dropped (GPT-3, 2005.14165)."""
    on_bad_row: Literal["error", "skip"] = "error"
    """What to do with a row that is no text (binary, another encoding): stop and name it, or count and report it."""

    def smoke(self) -> Self:
        """Short windows, enough documents on both sides, and bounds that generated documents keep."""
        from stages.data.filters import loosest

        return self.replaced(
            sequence_length=min(self.sequence_length, 32),
            heldout_fraction=max(self.heldout_fraction, 0.2),
            min_characters=0,
            thresholds=loosest(self.filters),
            language_probability=0,
            contamination_words=1000,
        )


class PrepareData(Stage):
    """Normalise, filter, deduplicate, decontaminate, split, tokenise and pack documents for a model.

    Every document is judged by itself: its length, quality filters, its language, words shared with `evaluations`; then
    repetitions go. The split is by document, on a hash of its text. Documents go through in an order drawn from the
    seed, joined by a separator, in windows of `sequence_length` tokens that may span documents. Nothing depends on the
    order of the input or the number of workers. The report is a data card: what each filter dropped, with samples.
    """

    Params = PrepareDataParams
    inputs: ClassVar[Mapping[str, Input]] = {
        "text": Input(Dataset, schema="text"),
        "model": Input(Model),
        "evaluations": Input(Dataset, schema="text", optional=True, many=True),
    }
    outputs: ClassVar[Mapping[str, Output]] = {
        "train": Output(Dataset, schema="tokens"),
        "heldout": Output(Dataset, schema="tokens"),
        "report": Output(Report),
    }
    metrics = (
        "documents",
        "kept_documents",
        "unused_documents",
        "dropped_*",
        "c4_lines_removed",
        "train_*",
        "heldout_*",
    )
    distributed = True
    params: PrepareDataParams

    def preflight(self) -> None:
        """The limits hold a window at least, thresholds belong to rules, and the language can be told."""
        for name in ("max_tokens", "max_heldout_tokens"):
            limit, length = getattr(self.params, name), self.params.sequence_length
            if limit is not None and limit < length:
                raise UserError(
                    f"{name}: {limit} is less than one window of sequence_length: {length}",
                    fix=f"set {name} to {length} or more",
                )
        if self.params.thresholds:
            from stages.data.filters import rules_of

            rules_of(self.params.filters, self.params.thresholds)
        if self.params.language:
            self._require_language(self.params.language)

    def _require_language(self, language: str) -> None:
        from stages.data.language import PACKAGE, require_language

        if importlib.util.find_spec(PACKAGE) is None:
            raise UserError(f"language: {language} needs the package {PACKAGE}", fix="pip install 'regraft[data]'")
        require_language(language)

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
        """Judge each document, drop repetitions, then encode and pack in the order of the seed."""
        from stages.data.card import FIGURE, draw_drops, drop_table
        from stages.data.parallel import Workers

        screening, details = self._screening(context)
        with Workers(context.resources) as workers:
            drops, portions = self._screen(context, workers, screening)
            corpus = self._unite(context, portions, drops)
            self._require_documents(corpus, drops)
            context.say(f"{len(corpus):,} of {drops.num_read:,} documents stay; dropped: {_told(drops) or 'none'}")
            sides = self._pack(context, workers, corpus)
        shutil.rmtree(context.scratch / "corpus")
        self._require_windows(sides, len(corpus))
        for name, packer in sides.items():
            self._card(context, packer).write(context.output(name))
        context.metrics(**self._figures(corpus, drops, sides))
        draw_drops(context.output("report") / FIGURE, drops, len(corpus))
        details |= {"dropped": drop_table(drops, screening.rules), "figures": [FIGURE], **self.params.identity()}
        write_report(context.output("report"), "Data card", context.results, details)

    def _screening(self, context: Context) -> tuple[Screening, dict[str, Any]]:
        """How documents are judged, and what is to say of the evaluation texts."""
        from stages.data.contamination import collect_ngrams
        from stages.data.screening import Screening

        params, ngrams, details = self.params, None, {}
        folder = context.scratch / "corpus"
        folder.mkdir(parents=True, exist_ok=True)
        evaluations: Sequence[Dataset] = context.inputs.get("evaluations") or []
        if evaluations:
            ngrams = folder / "evaluations.npy"
            shards = [shard for evaluation in evaluations for shard in evaluation.shards]
            read, short = collect_ngrams(shards, params.contamination_words, ngrams)
            details = {"evaluation_texts": read, "evaluation_texts_too_short": short}
            if short:
                context.say(
                    f"{short} of {read} evaluation texts have fewer than {params.contamination_words} words: "
                    "they cannot be looked for"
                )
        screening = Screening(
            min_characters=params.min_characters,
            max_characters=params.max_characters,
            unicode=params.unicode,
            white_space=params.white_space,
            language=params.language,
            min_language_probability=params.language_probability,
            filters=params.filters,
            thresholds=params.thresholds,
            ngrams=ngrams,
            ngram_words=params.contamination_words,
            signed=params.deduplicate == "minhash",
            skip_bad_rows=params.on_bad_row == "skip",
        )
        return screening, details

    def _screen(self, context: Context, workers: Workers, screening: Screening) -> tuple[Drops, list[Portion]]:
        from functools import partial

        from stages.data.drops import Drops
        from stages.data.screening import screen

        text, drops = context.dataset("text"), Drops()
        portions = list(_portions(text.shards, context.scratch / "corpus"))
        for found in workers.in_order(partial(screen, screening), portions):
            drops.merge(found)
            context.progress(drops.num_read, text.card.num_rows, "documents read")
            _stop_if_asked(context)
        return drops, portions

    def _unite(self, context: Context, portions: Sequence[Portion], drops: Drops) -> Corpus:
        from stages.data.corpus import unite

        params = self.params
        corpus = unite(
            portions,
            context.scratch / "corpus" / "documents.arrow",
            drops,
            exact=params.deduplicate != "none",
            similarity=params.similarity if params.deduplicate == "minhash" else None,
        )
        assert drops.num_read == len(corpus) + drops.num_dropped, (drops.num_read, len(corpus), drops.counts)
        return corpus

    def _pack(self, context: Context, workers: Workers, corpus: Corpus) -> dict[str, Packer]:
        from stages.data.corpus import read_documents
        from stages.data.encoding import encoder_of
        from stages.data.packing import Packer

        params, encoder = self.params, encoder_of(context.model("model").path)
        separator, length = encoder.separator(params.separator), params.sequence_length
        limits = {"train": params.max_tokens, "heldout": params.max_heldout_tokens}
        sides = {
            name: Packer(
                context.output(name),
                length,
                separator,
                limit // length if limit else None,
                apart=params.attention == "document" and name == "train",
            )
            for name, limit in limits.items()
        }
        done = 0
        for encoded in self._encoded(context, workers, corpus):
            _add(encoded, sides)
            done += len(encoded.numbers)
            context.progress(done, len(corpus), "documents packed")
            _stop_if_asked(context)
            if all(packer.full for packer in sides.values()):
                break
        for packer in sides.values():
            packer.close(lambda number, token: encoder.bytes_before(read_documents(corpus.file, [number])[0], token))
        return sides

    def _encoded(self, context: Context, workers: Workers, corpus: Corpus) -> Iterator[Encoded]:
        from stages.data.encoding import EncodingTask, encode_documents
        from stages.data.reading import BATCH_DOCUMENTS

        order, model = corpus.order(context.seed), context.model("model").path
        tasks = [
            EncodingTask(corpus.file, order[start : start + BATCH_DOCUMENTS], model, self.params.heldout_fraction)
            for start in range(0, len(order), BATCH_DOCUMENTS)
        ]
        return workers.in_order(encode_documents, tasks)

    def _require_documents(self, corpus: Corpus, drops: Drops) -> None:
        if not len(corpus):
            raise UserError(
                f"none of the {drops.num_read} documents stays: {_told(drops) or 'the dataset is empty'}",
                fix="loosen what dropped them: min_characters, language, filters or thresholds, evaluations",
            )

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

    def _figures(self, corpus: Corpus, drops: Drops, sides: Mapping[str, Packer]) -> dict[str, float]:
        from stages.data.card import dropped_counts

        used = sum(packer.num_documents for packer in sides.values())
        figures = {
            "documents": drops.num_read,
            "kept_documents": len(corpus),
            "unused_documents": len(corpus) - used,
            **dropped_counts(drops, self.params.filters),
        }
        if "c4" in self.params.filters:
            figures["c4_lines_removed"] = drops.removed_lines
        for name, packer in sides.items():
            figures[f"{name}_documents"] = packer.num_documents
            figures[f"{name}_windows"] = packer.num_windows
            figures[f"{name}_tokens"] = packer.num_windows * packer.length
            figures[f"{name}_bytes"] = packer.num_bytes
            figures[f"{name}_tail_tokens"] = packer.num_tail_tokens
        return figures


def _portions(shards: Sequence[Path], folder: Path) -> Iterator[Portion]:
    """Every row group of every shard."""
    from stages.data.reading import row_groups
    from stages.data.screening import Portion

    for number, shard in enumerate(shards):
        first_row = 0
        for group, num_rows in enumerate(row_groups(shard)):
            yield Portion(shard, group, first_row, folder / f"portion-{number:05d}-{group:05d}.arrow")
            first_row += num_rows


def _told(drops: Drops) -> str:
    """The commonest reasons, with their counts."""
    told = [f"{count:,} {reason}" for reason, count in drops.counts.most_common(5) if count]
    return ", ".join(told) + (", …" if len(drops.counts) > 5 else "")


def _add(encoded: Encoded, sides: Mapping[str, Packer]) -> None:
    """Give each document to its side."""
    start = 0
    columns = (encoded.numbers, encoded.lengths, encoded.num_bytes, encoded.heldout)
    for number, length, num_bytes, heldout in zip(*(column.tolist() for column in columns), strict=True):
        ids = encoded.ids[start : start + length]
        sides["heldout" if heldout else "train"].add(number, ids, num_bytes)
        start += length


def _stop_if_asked(context: Context) -> None:
    if context.stopping():
        raise StoppedError("stopped while preparing data; the next run goes on from the portions that are done")
