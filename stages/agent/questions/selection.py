"""Which drafts of questions stand: verified one by one, the others kept by what is wrong with them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import cast

from stages.agent.environment.base import Tool
from stages.agent.questions.drafts import REJECTIONS, Draft, Drafter, Kind, Rejection, verify
from stages.agent.questions.selected import Selected


class Selection(Selected[Draft, Draft]):
    """The drafts that stand, and those rejected."""

    def __init__(self, tools: Mapping[str, Tool]) -> None:
        super().__init__()
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

    def subject(self, kept: Draft) -> str:
        """The title of the document with the answer."""
        return kept.subject

    def shown(self, one: Draft) -> dict[str, str]:
        """With the path that leads to the answer."""
        path = " → ".join(f"{hop.query} [{hop.document.id}]" for hop in one.path)
        return {"question": one.question, "answer": one.answer, "path": path}

    def told(self, reason: str) -> str:
        """As `REJECTIONS` say."""
        return REJECTIONS[cast("Rejection", reason)]
