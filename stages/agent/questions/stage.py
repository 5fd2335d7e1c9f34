"""`agent.questions`: questions over a collection, each verified against it before it counts."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Self

from pydantic import Field

from stages.artifacts import Dataset, Report, write_report
from stages.errors import UserError
from stages.stage import Context, Input, Output, Parameters, Stage

if TYPE_CHECKING:
    from stages.agent.environment.base import Tool
    from stages.agent.questions.drafts import Draft
    from stages.agent.questions.selection import Selection


class QuestionsParameters(Parameters):
    """Which questions, and how many."""

    kinds: Annotated[tuple[Literal["fact", "cloze", "bridge"], ...], Field(min_length=1)] = ("fact", "bridge")
    """`fact`: who, when or where, about a title; two calls. `cloze`: a missing word of a sentence; two calls.
    `bridge`: a sentence lacks a title, and the fact is about that; four calls. `fact` and `bridge` read English
    encyclopedic prose, `cloze` any text."""
    per_kind: Annotated[int, Field(ge=1)] = 500
    """Questions of each kind at most."""
    context_words: Annotated[int, Field(ge=2)] = 10
    """Words of a sentence on either side of what is missing."""
    heldout_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Share of the subjects to hold out: a title asked about in one half is not asked about in the other."""

    def smoke(self) -> Self:
        """A few questions of the kind that any text gives."""
        return self.replaced(kinds=("cloze",), per_kind=min(self.per_kind, 24), heldout_fraction=0.3)


class AgentQuestions(Stage):
    """Draft questions from the documents of an index and keep those that its tools can answer, and only so.

    A draft is kept when its question does not say the answer, its searches find its documents, the last of them says
    the answer as shown and no earlier one does, and no other sentence fits. Then the environment proves itself: every
    solution gets the full reward, garbage none.
    """

    Params = QuestionsParameters
    inputs: ClassVar[Mapping[str, Input]] = {"index": Input(Dataset, schema="text")}
    outputs: ClassVar[Mapping[str, Output]] = {
        "train": Output(Dataset, schema="messages"),
        "heldout": Output(Dataset, schema="messages"),
        "report": Output(Report),
    }
    metrics = ("train_questions", "heldout_questions", "drafts", "rejected_*", "questions_*")
    params: QuestionsParameters

    def run(self, context: Context) -> None:
        """Draft, verify, split, prove, write."""
        from stages.agent.environment.research import make_tools
        from stages.agent.questions.drafts import Drafter
        from stages.agent.questions.selection import Selection

        params, (collection, tools) = self.params, make_tools(context.dataset("index").path)
        drafter = Drafter(collection, params.context_words, random.Random(context.seed))
        found, wanted = Selection(tools), params.per_kind * len(params.kinds)
        found.fill(drafter, params.kinds, params.per_kind, lambda n: context.progress(n, wanted, "questions"))
        sides = found.split(params.heldout_fraction)
        for name, drafts in sides.items():
            self._write(context, name, drafts, found, tools)
        context.metrics(**found.counts(), **{f"{name}_questions": len(drafts) for name, drafts in sides.items()})
        details = {"parameters": params.identity(), "seed": context.seed, **found.samples()}
        write_report(context.output("report"), "Questions", context.results, details)

    def _write(
        self, context: Context, name: str, drafts: list[Draft], found: Selection, tools: dict[str, Tool]
    ) -> None:
        from stages.agent.conversation.records import write_tasks

        if not drafts:
            raise UserError(
                f"no questions for {name}: {len(found.kept)} drafts stand, rejected are {found.reasons()}",
                fix="index more documents, or add the kind `cloze`, which any text gives",
            )
        card, tasks = context.dataset("index").card, [draft.task() for draft in drafts]
        _prove(tasks, tools)
        write_tasks(context.output(name), tasks, licence=card.licence, source=card.source)


def _prove(tasks: list, tools: dict[str, Tool]) -> None:
    """Let the environment prove itself. Raises UserError where it does not."""
    from stages.agent.environment.episodes import prove
    from stages.agent.environment.research import ResearchEnvironment
    from stages.agent.environment.toolbox import Toolbox

    with Toolbox(tools) as toolbox:
        problems = prove(ResearchEnvironment(tools, tasks), toolbox)
    if problems:
        raise UserError(
            f"{len(problems)} findings on {len(tasks)} questions: {'; '.join(problems[:3])}",
            fix="a question's solution has to be right by the environment's own rule: look at the questions named",
        )
