"""The data card of a prepared dataset: what was dropped and why, with samples, as a table and as a figure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from stages.artifacts import Dataset, DatasetCard, Model
from stages.data.drops import Drops
from stages.data.filters import Rule
from stages.data.packing import Packer

FIGURE: Final = "dropped.svg"
MEANINGS: Final[Mapping[str, str]] = {
    "unreadable": "the row is no text",
    "empty": "nothing is left after normalising, or of C4's lines",
    "short": "fewer characters than min_characters",
    "long": "more characters than max_characters",
    "bad_words": "holds a word or phrase of the list",
    "language": "another language, or not surely enough",
    "contaminated": "shares a run of words with an evaluation set",
    "duplicates": "equals another document",
    "near_duplicates": "MinHash similarity to another document at or above the threshold",
}


def dropped_counts(drops: Drops, filters: Sequence[str]) -> dict[str, float]:
    """`dropped_REASON` for every reason there can be, a filter's rules added up."""
    reasons = [*MEANINGS, *filters]
    families = Counter[str]()
    for reason, count in drops.counts.items():
        families[reason.partition(".")[0]] += count
    return {f"dropped_{reason}": families[reason] for reason in reasons}


def prepared_figures(
    num_kept: int, drops: Drops, sides: Mapping[str, Packer], filters: Sequence[str]
) -> dict[str, float]:
    """The metrics of the stage: documents read, kept, dropped by reason, and what is on each side."""
    figures = {
        "documents": drops.num_read,
        "kept_documents": num_kept,
        "unused_documents": num_kept - sum(packer.num_documents for packer in sides.values()),
        **dropped_counts(drops, filters),
    }
    if "c4" in filters:
        figures["c4_lines_removed"] = drops.removed_lines
    for name, packer in sides.items():
        figures[f"{name}_documents"] = packer.num_documents
        figures[f"{name}_windows"] = packer.num_windows
        figures[f"{name}_tokens"] = packer.num_windows * packer.length
        figures[f"{name}_bytes"] = packer.num_bytes
        figures[f"{name}_tail_tokens"] = packer.num_tail_tokens
    return figures


def prepared_card(packer: Packer, text: Dataset, model: Model) -> DatasetCard:
    """What the windows that `packer` wrote declare of themselves, being of `text` in the tokens of `model`."""
    return DatasetCard(
        schema="tokens",
        num_rows=packer.num_windows,
        num_bytes=packer.num_bytes,
        num_tokens=packer.num_windows * packer.length,
        sequence_length=packer.length,
        tokenizer=model.tokenizer_fingerprint,
        licence=text.card.licence,
        source=text.card.source,
    )


def drop_table(drops: Drops, rules: Sequence[Rule]) -> list[dict[str, Any]]:
    """One row for each reason that documents were dropped for, most first: count, share of all, rule and samples."""
    bounds = {rule.name: f"kept while {rule.keep} {rule.bound:g}" for rule in rules}
    return [
        {
            "reason": reason,
            "means": MEANINGS.get(reason) or bounds[reason],
            "documents": count,
            "share": round(count / drops.num_read, 6),
            "samples": [asdict(sample) for sample in drops.samples.get(reason, [])],
        }
        for reason, count in sorted(drops.counts.items(), key=lambda entry: (-entry[1], entry[0]))
        if count
    ]


def draw_drops(file: Path, drops: Drops, num_kept: int) -> None:
    """Draw how many documents each reason dropped, beside those kept: logarithmic bars, counts in their labels."""
    from stages.figures import COLOURS, figure

    dropped = sorted(((count, reason) for reason, count in drops.counts.items() if count), reverse=True)
    bars = [(num_kept, "kept"), *dropped]
    with figure(file, 7, 0.9 + 0.28 * len(bars)) as made:
        axes = made.subplots()
        colours = [COLOURS["model"], *[COLOURS["baseline"]] * len(dropped)]
        drawn = axes.barh([reason for _, reason in bars], [count for count, _ in bars], color=colours)
        axes.bar_label(drawn, [f"{count:,} ({count / max(1, drops.num_read):.1%})" for count, _ in bars], padding=3)
        axes.set(xscale="log", xlim=(0.5, 10 * drops.num_read + 1), title=f"of {drops.num_read:,} documents")
        axes.invert_yaxis()
        axes.xaxis.set_visible(False)
        axes.grid(visible=False)
