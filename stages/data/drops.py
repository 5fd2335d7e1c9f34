"""What was dropped, by reason: every document counted, a few of them shown."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any, Final, Self

SAMPLES: Final = 3
"""Documents shown for each reason."""
EXCERPT: Final = 240
"""Characters shown of one."""


@dataclass(frozen=True, order=True)
class Sample:
    """One dropped document. Those with the smallest digests are shown: a choice that depends on their texts alone."""

    digest: str
    where: str
    """Shard and row."""
    why: str
    """What was measured, or what it repeats."""
    excerpt: str


@dataclass
class Drops:
    """Counts and samples by reason; `num_read` is all documents, kept or not."""

    num_read: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    samples: dict[str, list[Sample]] = field(default_factory=dict)
    removed_lines: int = 0
    """Lines that C4's filter took out of documents which stayed."""

    @property
    def num_dropped(self) -> int:
        """Documents dropped, whatever the reason."""
        return self.counts.total()

    def add(self, reason: str, digest: bytes, where: str, why: str, text: str) -> None:
        """Count a dropped document, and keep it as a sample if it is among the first by digest."""
        self.counts[reason] += 1
        self._show(reason, [Sample(digest.hex(), where, why, excerpt(text))])

    def merge(self, other: Drops) -> None:
        """Add what another part of the corpus dropped. The order of merging does not matter."""
        self.num_read += other.num_read
        self.removed_lines += other.removed_lines
        self.counts.update(other.counts)
        for reason, samples in other.samples.items():
            self._show(reason, samples)

    def _show(self, reason: str, samples: Iterable[Sample]) -> None:
        self.samples[reason] = sorted([*self.samples.get(reason, []), *samples])[:SAMPLES]

    def told(self) -> str:
        """The commonest reasons, with their counts; "" when nothing was dropped."""
        told = [f"{count:,} {reason}" for reason, count in self.counts.most_common(5) if count]
        return ", ".join(told) + (", …" if len(self.counts) > 5 else "")

    def as_json(self) -> dict[str, Any]:
        """Plain values, from which `from_json` makes it again."""
        samples = {reason: [asdict(sample) for sample in found] for reason, found in self.samples.items()}
        counts = {"num_read": self.num_read, "removed_lines": self.removed_lines, "counts": dict(self.counts)}
        return {**counts, "samples": samples}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        """The inverse of `as_json`."""
        samples = {reason: [Sample(**sample) for sample in found] for reason, found in value["samples"].items()}
        return cls(value["num_read"], Counter(value["counts"]), samples, value["removed_lines"])


def excerpt(text: str) -> str:
    """The beginning of a text, on one line, without control characters."""
    shown = "".join(char if char.isprintable() else " " for char in text[: 4 * EXCERPT])
    shown = " ".join(shown.split())
    return shown if len(shown) <= EXCERPT and len(text) <= 4 * EXCERPT else shown[:EXCERPT].rstrip() + "…"
