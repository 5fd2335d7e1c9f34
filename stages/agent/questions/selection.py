"""Which drafts of questions stand: verified one by one, the others kept by what is wrong with them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from stages.agent.environment.base import Tool
from stages.agent.questions.drafts import REJECTIONS, Draft, Drafter, Kind, Rejection, verify

SAMPLES: Final = 3
"""Shown of each kind, and of each reason to reject."""


class Selection:
    """The drafts that stand (`kept`), and those `rejected` by reason."""

    def __init__(self, tools: Mapping[str, Tool]) -> None:
        self.kept: list[Draft] = []
        self.rejected: dict[Rejection, list[Draft]] = {}
        self._tools, self._asked = tools, set[str]()

    def fill(self, drafter: Drafter, kinds: Sequence[Kind], per_kind: int, tell: Callable[[int], None]) -> None:
        """Judge drafts until `per_kind` of each kind stand, or there are no more; `tell` how many do."""
        for kind in kinds:
            wanted = len(self.kept) + per_kind
            for draft in drafter.drafts(kind):
                self.judge(draft)
                tell(len(self.kept))
                if len(self.kept) == wanted:
                    break

    def judge(self, draft: Draft) -> None:
        """Keep a draft, or put it with the others that fail as it does."""
        reason: Rejection | None = "repeated" if draft.question in self._asked else verify(draft, self._tools)
        self._asked.add(draft.question)
        if reason:
            self.rejected.setdefault(reason, []).append(draft)
        else:
            self.kept.append(draft)

    def split(self, heldout_fraction: float) -> dict[str, list[Draft]]:
        """The kept drafts as `train` and `heldout`, kinds mixed: the first ones of either are a sample of it."""
        sides: dict[str, list[Draft]] = {"train": [], "heldout": []}
        for draft in sorted(self.kept, key=lambda draft: digest(draft.question)):
            sides["heldout" if is_heldout(draft.subject, heldout_fraction) else "train"].append(draft)
        return sides

    def counts(self) -> dict[str, int]:
        """Drafts in all, of each kind that stand, and of each reason that do not."""
        kinds = [draft.kind for draft in self.kept]
        return {
            "drafts": len(self.kept) + sum(map(len, self.rejected.values())),
            **{f"questions_{kind}": kinds.count(kind) for kind in dict.fromkeys(kinds)},
            **{f"rejected_{reason.replace('-', '_')}": len(drafts) for reason, drafts in self.rejected.items()},
        }

    def reasons(self) -> str:
        """Why drafts were rejected, in a line."""
        return "; ".join(f"{len(drafts)}: {REJECTIONS[reason]}" for reason, drafts in self.rejected.items()) or "none"

    def samples(self) -> dict[str, Any]:
        """Some drafts of each kind and of each reason, for a report."""
        kinds = dict.fromkeys(draft.kind for draft in self.kept)
        return {
            "questions": {
                kind: [_shown(draft) for draft in self.kept if draft.kind == kind][:SAMPLES] for kind in kinds
            },
            "rejected": {
                REJECTIONS[reason]: {"drafts": len(drafts), "samples": [_shown(draft) for draft in drafts[:SAMPLES]]}
                for reason, drafts in self.rejected.items()
            },
        }


def is_heldout(subject: str, fraction: float) -> bool:
    """Which side a subject is on: by its name alone, whatever else is asked, with whatever seed."""
    return int(digest(subject)[:8], 16) < fraction * 16**8


def digest(text: str) -> str:
    """SHA-256 in hexadecimal: an order in which nothing stands together."""
    return hashlib.sha256(text.encode()).hexdigest()


def _shown(draft: Draft) -> dict[str, str]:
    path = " → ".join(f"{hop.query} [{hop.document.id}]" for hop in draft.path)
    return {"question": draft.question, "answer": draft.answer, "path": path}
