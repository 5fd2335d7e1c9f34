"""`data.prepare`: turn documents into packed windows of token ids, with some documents held out."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from stages.artifacts import Dataset, Model, Report, write_report
from stages.data.prepare_settings import PrepareDataParams
from stages.errors import UserError
from stages.evaluate.matching import require_room
from stages.source.locate import locate
from stages.stage import Context, Input, Output, Source, Stage

if TYPE_CHECKING:
    from stages.data.drops import Drops
    from stages.data.packing import Packer


class PrepareData(Stage):
    """Normalise, filter, deduplicate, decontaminate, split, tokenise and pack documents for a model.

    Every document is judged by itself: its length, quality filters, its language, words shared with `evaluations`; then
    repetitions go. The split is by document, on a hash of the characters that it is made of. Documents go through in an
    order drawn from the seed, joined by a separator, in windows of `sequence_length` tokens that may span documents.
    Nothing depends on the order of the input or the number of workers. The report is a data card: what each filter
    dropped, with samples.
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

    def sources(self) -> Mapping[str, Source]:
        """The list of bad words."""
        return {"bad_words": locate(self.params.bad_words)} if self.params.bad_words else {}

    def preflight(self) -> None:
        """The limits hold a window at least, thresholds belong to rules, lists and languages can be read."""
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
        if self.params.bad_words:
            from stages.data.word_list import read_word_list

            read_word_list(locate(self.params.bad_words))
        if self.params.language:
            self._require_language(self.params.language)

    def _require_language(self, language: str) -> None:
        from stages.data.language import PACKAGE, require_language

        if importlib.util.find_spec(PACKAGE) is None:
            raise UserError(f"language: {language} needs the package {PACKAGE}", fix="pip install 'regraft[data]'")
        require_language(language)

    def check(self, inputs: Mapping[str, Any]) -> None:
        """The model has a tokenizer, and its context holds a window."""
        require_room(inputs["model"], self.params.sequence_length, "sequence_length")

    def run(self, context: Context) -> None:
        """Judge each document, drop repetitions, then encode and pack in the order of the seed."""
        from stages.data.card import FIGURE, draw_drops, drop_table, prepared_card, prepared_figures
        from stages.data.parallel import Workers
        from stages.data.preparing import FOLDER, pack_corpus, screen_corpus, screening_of, unite_corpus

        screening, details = screening_of(self.params, context)
        with Workers(context.resources) as workers:
            drops, portions = screen_corpus(screening, workers, context)
            corpus = unite_corpus(self.params, portions, drops, context)
            self._require_documents(len(corpus), drops)
            context.say(f"{len(corpus):,} of {drops.num_read:,} documents stay; dropped: {drops.told() or 'none'}")
            sides = pack_corpus(self.params, corpus, workers, context)
        shutil.rmtree(context.scratch / FOLDER)
        self._require_windows(sides, len(corpus))
        for name, packer in sides.items():
            prepared_card(packer, context.dataset("text"), context.model("model")).write(context.output(name))
        context.metrics(**prepared_figures(len(corpus), drops, sides, self.params.filters))
        draw_drops(context.output("report") / FIGURE, drops, len(corpus))
        details |= {"dropped": drop_table(drops, screening.rules), "figures": [FIGURE], **self.params.identity()}
        write_report(context.output("report"), "Data card", context.results, details)

    def _require_documents(self, num_documents: int, drops: Drops) -> None:
        if not num_documents:
            raise UserError(
                f"none of the {drops.num_read} documents stays: {drops.told() or 'the dataset is empty'}",
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
