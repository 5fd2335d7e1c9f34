"""The data card of a prepared dataset: what was dropped and why, with samples, as a table and as a figure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from stages.data.drops import Drops
from stages.data.filters import Rule

FIGURE: Final = "dropped.svg"
MEANINGS: Final[Mapping[str, str]] = {
    "unreadable": "the row is no text",
    "empty": "nothing is left after normalising",
    "short": "fewer characters than min_characters",
    "long": "more characters than max_characters",
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
    import matplotlib
    from matplotlib.figure import Figure

    from stages.evaluate.figures import COLOURS, STYLE

    dropped = sorted(((count, reason) for reason, count in drops.counts.items() if count), reverse=True)
    bars = [(num_kept, "kept"), *dropped]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7, 0.9 + 0.28 * len(bars)), layout="constrained")
        axes = figure.subplots()
        colours = [COLOURS["model"], *[COLOURS["baseline"]] * len(dropped)]
        drawn = axes.barh([reason for _, reason in bars], [count for count, _ in bars], color=colours)
        axes.bar_label(drawn, [f"{count:,} ({count / max(1, drops.num_read):.1%})" for count, _ in bars], padding=3)
        axes.set(xscale="log", xlim=(0.5, 10 * drops.num_read + 1), title=f"of {drops.num_read:,} documents")
        axes.invert_yaxis()
        axes.xaxis.set_visible(False)
        axes.grid(visible=False)
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
