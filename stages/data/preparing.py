"""The passes of `data.prepare` over a corpus, one after another: screen, unite, encode and pack."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np

from stages.artifacts import Dataset
from stages.data.contamination import collect_ngrams
from stages.data.corpus import Corpus, read_documents, unite
from stages.data.drops import Drops
from stages.data.encoding import Encoded, EncodingTask, encode_documents, encoder_of
from stages.data.packing import Packer
from stages.data.parallel import Workers
from stages.data.prepare_settings import PrepareDataParams
from stages.data.reading import BATCH_DOCUMENTS, row_groups
from stages.data.screening import Portion, Screening, screen
from stages.data.splitting import held_out
from stages.data.word_list import read_word_list
from stages.errors import StoppedError
from stages.source.locate import locate
from stages.stage import Context

FOLDER: Final = "corpus"
"""Where, in the scratch directory, everything is until the stage ends."""


def screening_of(params: PrepareDataParams, context: Context) -> tuple[Screening, dict[str, Any]]:
    """How documents are judged, and what is to say of the evaluation texts."""
    ngrams, details = _evaluations(params, context)
    screening = Screening(
        min_characters=params.min_characters,
        max_characters=params.max_characters,
        unicode=params.unicode,
        white_space=params.white_space,
        language=params.language,
        min_language_probability=params.language_probability,
        filters=params.filters,
        thresholds=params.thresholds,
        bad_words=read_word_list(locate(params.bad_words)) if params.bad_words else (),
        ngrams=ngrams,
        ngram_words=params.contamination_words,
        signed=params.deduplicate == "minhash",
        skip_bad_rows=params.on_bad_row == "skip",
    )
    return screening, details


def screen_corpus(screening: Screening, workers: Workers, context: Context) -> tuple[Drops, list[Portion]]:
    """Judge every document of input `text`: what was dropped, and the portions that hold the rest."""
    text, drops = context.dataset("text"), Drops()
    portions = list(_portions(text.shards, context.scratch / FOLDER))
    for found in workers.in_order(partial(screen, screening), portions):
        drops.merge(found)
        context.progress(drops.num_read, text.card.num_rows, "documents read")
        _stop_if_asked(context)
    return drops, portions


def unite_corpus(params: PrepareDataParams, portions: Sequence[Portion], drops: Drops, context: Context) -> Corpus:
    """The documents of all portions without the repetitions, which are added to `drops`."""
    corpus = unite(
        portions,
        context.scratch / FOLDER / "documents.arrow",
        drops,
        exact=params.deduplicate != "none",
        similarity=params.similarity if params.deduplicate == "minhash" else None,
    )
    assert drops.num_read == len(corpus) + drops.num_dropped, (drops.num_read, len(corpus), drops.counts)
    return corpus


def pack_corpus(params: PrepareDataParams, corpus: Corpus, workers: Workers, context: Context) -> dict[str, Packer]:
    """Encode the documents in the order of the seed and pack each into the windows of its side."""
    encoder = encoder_of(context.model("model").path)
    sides = _sides(params, encoder.separator(params.separator), context)
    heldout_N, done = held_out(corpus.splits, params.heldout_fraction), 0
    for encoded in workers.in_order(encode_documents, _encoding_tasks(corpus, context)):
        _add(encoded, heldout_N, sides)
        done += len(encoded.numbers)
        context.progress(done, len(corpus), "documents packed")
        _stop_if_asked(context)
        if all(packer.full for packer in sides.values()):
            break
    for packer in sides.values():
        packer.close(lambda number, token: encoder.bytes_before(read_documents(corpus.file, [number])[0], token))
    return sides


def _evaluations(params: PrepareDataParams, context: Context) -> tuple[Path | None, dict[str, Any]]:
    """The file of the evaluation texts' n-grams, and what is to say of them."""
    folder = context.scratch / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    evaluations: Sequence[Dataset] = context.inputs.get("evaluations") or []
    if not evaluations:
        return None, {}
    ngrams, words = folder / "evaluations.npy", params.contamination_words
    shards = [shard for evaluation in evaluations for shard in evaluation.shards]
    found = collect_ngrams(shards, words, ngrams)
    for count, what in ((found.short, f"have fewer than {words} words"), (found.unreadable, "are no text")):
        if count:
            context.say(
                f"{count} of {found.read + found.unreadable} evaluation texts {what}: they cannot be looked for"
            )
    return ngrams, {
        "evaluation_texts": found.read,
        "evaluation_texts_too_short": found.short,
        "evaluation_texts_unreadable": found.unreadable,
    }


def _portions(shards: Sequence[Path], folder: Path) -> Iterator[Portion]:
    """Every row group of every shard."""
    for number, shard in enumerate(shards):
        first_row = 0
        for group, num_rows in enumerate(row_groups(shard)):
            yield Portion(shard, group, first_row, folder / f"portion-{number:05d}-{group:05d}.arrow")
            first_row += num_rows


def _sides(params: PrepareDataParams, separator: tuple[list[int], int], context: Context) -> dict[str, Packer]:
    limits = {"train": params.max_tokens, "heldout": params.max_heldout_tokens}
    return {
        name: Packer(
            context.output(name),
            params.sequence_length,
            separator,
            limit // params.sequence_length if limit else None,
            apart=params.attention == "document" and name == "train",
        )
        for name, limit in limits.items()
    }


def _encoding_tasks(corpus: Corpus, context: Context) -> list[EncodingTask]:
    order, model = corpus.order(context.seed), context.model("model").path
    starts = range(0, len(order), BATCH_DOCUMENTS)
    return [EncodingTask(corpus.file, order[start : start + BATCH_DOCUMENTS], model) for start in starts]


def _add(encoded: Encoded, heldout_N: np.ndarray, sides: Mapping[str, Packer]) -> None:
    """Give each document to its side."""
    start = 0
    columns = (encoded.numbers, encoded.lengths, encoded.num_bytes, heldout_N[encoded.numbers])
    for number, length, num_bytes, heldout in zip(*(column.tolist() for column in columns), strict=True):
        ids = encoded.ids[start : start + length]
        sides["heldout" if heldout else "train"].add(number, ids, num_bytes)
        start += length


def _stop_if_asked(context: Context) -> None:
    if context.stopping():
        raise StoppedError("stopped while preparing data; the next run goes on from the portions that are done")
