"""What stands of many questions, and what does not: split, counted and shown in one way, whoever judges them."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Final, Generic, Protocol, TypeVar

SAMPLES: Final = 3
"""Shown of each kind, and of each reason to reject."""


class Asked(Protocol):
    """A question of some kind."""

    @property
    def kind(self) -> str:
        """Groups questions in reports."""
        ...

    @property
    def question(self) -> str:
        """What is asked."""
        ...


T = TypeVar("T", bound=Asked)
R = TypeVar("R")


class Selected(ABC, Generic[T, R]):
    """The questions that stand (`kept`), and those `rejected`, or what is wrong with them, by reason."""

    def __init__(self) -> None:
        self.kept: list[T] = []
        self.rejected: dict[str, list[R]] = {}

    @abstractmethod
    def subject(self, kept: T) -> str:
        """What a question is about: that is on one side alone."""

    @abstractmethod
    def shown(self, one: T | R) -> Any:
        """As a report shows it."""

    def told(self, reason: str) -> str:
        """A reason in words."""
        return reason

    def split(self, heldout_fraction: float) -> dict[str, list[T]]:
        """The questions as `train` and `heldout`, kinds mixed: the first ones of either are a sample of it."""
        sides: dict[str, list[T]] = {"train": [], "heldout": []}
        for kept in sorted(self.kept, key=lambda kept: digest(kept.question)):
            sides["heldout" if is_heldout(self.subject(kept), heldout_fraction) else "train"].append(kept)
        return sides

    def counts(self) -> dict[str, int]:
        """Drafts in all, of each kind that stand, and of each reason that do not."""
        return {
            "drafts": len(self.kept) + sum(map(len, self.rejected.values())),
            **{f"questions_{kind}": len(kept) for kind, kept in self._by_kind().items()},
            **{f"rejected_{reason.replace('-', '_')}": len(found) for reason, found in self.rejected.items()},
        }

    def reasons(self) -> str:
        """Why drafts were rejected, in a line with a sample each."""
        told = (
            f"{len(found)}: {self.told(reason)}, as {self.shown(found[0])!r}" for reason, found in self.rejected.items()
        )
        return "; ".join(told) or "none"

    def samples(self) -> dict[str, Any]:
        """Some questions of each kind and some drafts of each reason, for a report."""
        return {
            "questions": {kind: self._some(kept) for kind, kept in self._by_kind().items()},
            "rejected": {
                self.told(reason): {"drafts": len(found), "samples": self._some(found)}
                for reason, found in self.rejected.items()
            },
        }

    def _by_kind(self) -> dict[str, list[T]]:
        kinds = dict.fromkeys(kept.kind for kept in self.kept)
        return {kind: [kept for kept in self.kept if kept.kind == kind] for kind in kinds}

    def _some(self, found: Sequence[T | R]) -> list[Any]:
        return [self.shown(one) for one in found[:SAMPLES]]


def is_heldout(subject: str, fraction: float) -> bool:
    """Which side a subject is on: by its name alone, whatever else is asked, with whatever seed."""
    return int(digest(subject)[:8], 16) < fraction * 16**8


def digest(text: str) -> str:
    """SHA-256 in hexadecimal: an order in which nothing stands together."""
    return hashlib.sha256(text.encode()).hexdigest()
