"""The first pass over a corpus: each document normalised and judged by itself, in portions that go anywhere.

A portion is a row group of a shard. What it keeps lands in an Arrow file with each document's digest, the key that
decides its side of the split and, where near-duplicates are looked for, its MinHash signature; what it drops lands in a
JSON file beside it, whose presence says that the portion is done: a stage that is tried again goes on from there.
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Final, NamedTuple

import pyarrow as pa

from stages.data.contamination import evaluation_ngrams
from stages.data.drops import Drops
from stages.data.filters import Rule, c4_lines, first_broken, rules_of
from stages.data.language import language_of
from stages.data.minhash import NUM_HASHES, shingles, signature
from stages.data.reading import Row, read_texts
from stages.data.splitting import split_key
from stages.data.word_list import WordList
from stages.errors import UserError

DIGEST_BYTES: Final = 16
KEPT: Final = pa.schema(
    [("text", pa.string()), ("digest", pa.binary(DIGEST_BYTES)), ("split", pa.uint64()), ("where", pa.string())]
)
SIGNED: Final = KEPT.append(pa.field("signature", pa.binary(4 * NUM_HASHES)))


class Portion(NamedTuple):
    """A row group of a shard, the row that it starts at, and the file for what it keeps."""

    shard: Path
    row_group: int
    first_row: int
    file: Path

    @property
    def record(self) -> Path:
        """Where its `Drops` are, once it is done."""
        return self.file.with_suffix(".json")


Reason = tuple[str, str]
"""Why a document goes: the reason by name, and what was found."""


class Verdict(NamedTuple):
    """What became of a document: dropped for a `reason`, or kept when that is ""."""

    text: str
    reason: str = ""
    why: str = ""


@dataclass(frozen=True)
class Screening:
    """How each document is judged, the cheap questions first. Picklable."""

    min_characters: int = 0
    max_characters: int | None = None
    unicode: str = "NFC"
    white_space: str = "collapse"
    language: str | None = None
    min_language_probability: float = 0.0
    filters: tuple[str, ...] = ()
    thresholds: Mapping[str, float] = field(default_factory=dict)
    bad_words: tuple[str, ...] = ()
    ngrams: Path | None = None
    """File of the evaluation texts' n-grams of `ngram_words` words."""
    ngram_words: int = 13
    signed: bool = False
    """Whether to write MinHash signatures."""
    skip_bad_rows: bool = False

    @cached_property
    def rules(self) -> list[Rule]:
        """The rules of its filters."""
        return rules_of(self.filters, self.thresholds)

    @cached_property
    def word_list(self) -> WordList:
        """`bad_words`, ready to be looked for."""
        return WordList(self.bad_words)

    def judge(self, text: str) -> Verdict:
        """Normalise a document and say whether to keep it."""
        text = page = normalise(text, self.unicode, self.white_space)
        if not text:
            return Verdict(text, "empty")
        if "c4" in self.filters:
            text = c4_lines(page)
        found = self._length(text) or self._broken(page, text) or self._worded(text)
        found = found or self._language(text) or self._shared(text)
        if found:
            return Verdict(page, *found)
        return Verdict(text) if text else Verdict(page, "empty", "C4 keeps no line")

    def _length(self, text: str) -> Reason | None:
        if len(text) < self.min_characters:
            return "short", f"{len(text)} characters, kept from {self.min_characters}"
        if self.max_characters is not None and len(text) > self.max_characters:
            return "long", f"{len(text)} characters, kept to {self.max_characters}"
        return None

    def _language(self, text: str) -> Reason | None:
        if self.language is None:
            return None
        code, probability = language_of(text)
        if code == self.language and probability >= self.min_language_probability:
            return None
        return "language", f"{code} with probability {probability:.2f}"

    def _broken(self, page: str, text: str) -> Reason | None:
        for subject, rules in (
            (page, [rule for rule in self.rules if rule.of_page]),
            (text, [rule for rule in self.rules if not rule.of_page]),
        ):
            if rules and (broken := first_broken(rules, subject)):
                rule, value = broken
                return rule.name, f"{value:.4g}, kept {rule.keep} {rule.bound:g}"
        return None

    def _worded(self, text: str) -> Reason | None:
        found = self.word_list.first_in(text) if self.bad_words else None
        return ("bad_words", f"holds “{found}”") if found else None

    def _shared(self, text: str) -> Reason | None:
        if self.ngrams is None:
            return None
        found = evaluation_ngrams(self.ngrams, self.ngram_words, self.ngrams.stat().st_mtime_ns).first_shared(text)
        return ("contaminated", f"shares “{found}”") if found else None


def normalise(text: str, unicode: str = "NFC", white_space: str = "collapse") -> str:
    """`text` in a Unicode normal form with plain line ends and no blanks at the end of lines.

    `white_space: collapse` also takes blank lines above one in a row, and what surrounds the text.
    """
    if not unicodedata.is_normalized(unicode, text):
        text = unicodedata.normalize(unicode, text)
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    if " \n" in text or "\t\n" in text or text.endswith((" ", "\t")):
        text = "\n".join(line.rstrip(" \t") for line in text.split("\n"))
    if white_space == "keep":
        return text if text.strip() else ""
    return (re.sub(r"\n{3,}", "\n\n", text) if "\n\n\n" in text else text).strip()


def document_digest(text: str) -> bytes:
    """16 bytes that depend on the text alone."""
    return hashlib.blake2b(text.encode(), digest_size=DIGEST_BYTES).digest()


def screen(screening: Screening, portion: Portion) -> Drops:
    """Judge the documents of `portion` and write those kept, unless that is done already.

    Raises UserError naming shard and row for a row that is no text, unless `skip_bad_rows` counts it.
    """
    if portion.record.exists():
        return Drops.from_json(json.loads(portion.record.read_text(encoding="utf-8")))
    drops, schema = Drops(), SIGNED if screening.signed else KEPT
    with pa.OSFile(str(portion.file), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        for rows in read_texts(portion.shard, portion.row_group, portion.first_row):
            kept = list(_kept(rows, screening, portion.shard, drops))
            if kept:
                columns = [
                    pa.array(values, column.type)
                    for values, column in zip(zip(*kept, strict=True), schema, strict=True)
                ]
                writer.write_batch(pa.record_batch(columns, schema=schema))
    temporary = portion.record.with_suffix(".part")
    temporary.write_text(json.dumps(drops.as_json()), encoding="utf-8")
    temporary.replace(portion.record)
    return drops


def _kept(rows: list[Row], screening: Screening, shard: Path, drops: Drops) -> Iterator[tuple[str | bytes | int, ...]]:
    for row in rows:
        drops.num_read += 1
        where = f"{shard.name} row {row.number}"
        if row.fault and not screening.skip_bad_rows:
            raise UserError(
                f"{shard} row {row.number} is no text: {row.fault}",
                fix="mend the source of the dataset, or set on_bad_row: skip to count such rows and go on",
            )
        verdict = Verdict("", "unreadable", row.fault) if row.fault else screening.judge(row.text or "")
        digest = document_digest(verdict.text)
        if verdict.reason:
            drops.add(verdict.reason, digest, where, verdict.why, verdict.text)
            continue
        drops.removed_lines += _lines_removed(row.text or "", verdict.text, screening)
        signed = (signature(shingles(verdict.text)).tobytes(),) if screening.signed else ()
        # The split goes by the document as it came: what a filter takes out of it must not change its side.
        yield verdict.text, digest, split_key(row.text or ""), where, *signed


def _lines_removed(before: str, after: str, screening: Screening) -> int:
    if "c4" not in screening.filters:
        return 0
    page = normalise(before, screening.unicode, screening.white_space)
    return sum(bool(line.strip()) for line in page.splitlines()) - len(after.splitlines())
