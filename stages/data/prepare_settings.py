"""The parameters of `data.prepare`. Imported to plan: nothing heavy."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field

from stages.stage import EXECUTION, Parameters


class PrepareDataParams(Parameters):
    """How documents are cleaned, filtered, split and packed."""

    sequence_length: Annotated[int, Field(ge=2)] = 512
    """Tokens in each window."""
    heldout_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.05
    """Share of the documents to hold out. Which ones depends on their characters alone, in no order: a document is on
    the same side in every corpus and for every seed, and so is a copy of it with its words shuffled."""
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
    bad_words: Annotated[str | None, EXECUTION] = None
    """A list of words and phrases, one a line: `package:NAME/path` or a local file, which counts by its content.
    Documents that hold any are dropped, as C4 does."""
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
            bad_words=None,
            contamination_words=1000,
        )
