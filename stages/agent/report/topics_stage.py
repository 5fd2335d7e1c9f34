"""`agent.report_topics`: what to write reports on, drawn from a collection, with a checklist each."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from stages.artifacts import Dataset, Report, write_report
from stages.errors import UserError
from stages.stage import Context, Input, Output, Parameters, Stage

if TYPE_CHECKING:
    from stages.agent.report.rules import Rules
    from stages.agent.report.topics import Topic


class TopicsParameters(Parameters):
    """How many topics of what kind, and the rules by which reports on them are written and rewarded."""

    topics: Annotated[int, Field(ge=2)] = 100
    """Topics at most."""
    link: Literal["mention", "search"] = "mention"
    """What relates documents: `mention`, the text of one names the title of the other; `search`, a search for the
    title finds it, which any text gives."""
    aspects: Annotated[int, Field(ge=2, le=7)] = 3
    """Documents that a question names."""
    deeper: Annotated[int, Field(ge=1, le=7)] = 2
    """Documents below each aspect at most, for the writer to discover."""
    heldout_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Share of the topics to hold out."""

    levels: Annotated[int, Field(ge=1, le=6)] = 3
    """Levels of sections at most."""
    expansions: Annotated[int, Field(ge=0)] = 12
    """Sections that are deepened at most."""
    actions: Annotated[int, Field(ge=1)] = 140
    """Actions of a report at most; one that is not terminated by then is worth nothing."""
    fewest_sections: Annotated[int, Field(ge=1)] = 2
    """Sections of an outline, and below a section, at least."""
    most_sections: Annotated[int, Field(ge=1)] = 7
    """Sections of an outline, and below a section, at most."""
    queries: Annotated[int, Field(ge=1)] = 3
    """Queries of one search at most."""
    documents: Annotated[int, Field(ge=1, le=20)] = 3
    """Documents that a search brings."""
    draft_characters: Annotated[int, Field(ge=0)] = 200
    """Characters of the draft that a prompt shows: its end to write on, the beginning of each section to decide by."""
    fewest_words: Annotated[int, Field(ge=1)] = 15
    """Words of a section's text at least; the paper asks for 100 tokens."""
    most_words: Annotated[int, Field(ge=1)] = 400
    """Words of a section's text at most; the paper allows 2000 tokens."""
    most_citations: Annotated[int, Field(ge=1)] = 12
    """Documents that a section's text cites at most."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not self.fewest_sections <= self.aspects <= self.most_sections:
            raise ValueError(
                f"aspects: {self.aspects} is not from fewest_sections: {self.fewest_sections} to "
                f"most_sections: {self.most_sections}"
            )
        if self.fewest_words > self.most_words:
            raise ValueError(f"fewest_words: {self.fewest_words} exceeds most_words: {self.most_words}")
        return self

    def rules(self) -> Rules:
        """The rules of reports."""
        from stages.agent.report.rewards import TextRules
        from stages.agent.report.rules import Rules
        from stages.agent.report.state import Limits
        from stages.agent.report.view import View

        return Rules(
            Limits(self.levels, self.expansions, self.actions, self.fewest_sections, self.most_sections, self.queries),
            View(self.draft_characters),
            TextRules(self.fewest_words, self.most_words, self.most_citations),
            self.documents,
        )

    def smoke(self) -> Self:
        """A few topics of the kind that any text gives, and short reports."""
        small = {"topics": 8, "expansions": 1, "actions": 12}
        return self.replaced(
            link="search", aspects=2, fewest_sections=2, heldout_fraction=0.3,
            **{name: min(getattr(self, name), most) for name, most in small.items()},
        )  # fmt: skip


class AgentReportTopics(Stage):
    """Draw topics for reports from the documents of an index.

    A question names a few documents, its aspects, one of which the others name; other documents that name an aspect are
    left for the writer to discover. All of them make the checklist: a document to use, and the names, years or words
    that a text which used it would hardly leave out. No document is in two topics.
    """

    Params = TopicsParameters
    inputs: ClassVar[Mapping[str, Input]] = {"index": Input(Dataset, schema="text")}
    outputs: ClassVar[Mapping[str, Output]] = {
        "train": Output(Dataset, schema="messages"),
        "heldout": Output(Dataset, schema="messages"),
        "report": Output(Report),
    }
    metrics = ("train_topics", "heldout_topics", "documents")
    paper = "2602.06540"
    params: TopicsParameters

    def run(self, context: Context) -> None:
        """Draw, split, write."""
        from itertools import islice

        from stages.agent.environment.research import open_collection
        from stages.agent.report.topics import Drafter

        params = self.params
        collection = open_collection(context.dataset("index").path)
        drafter = Drafter(collection, params.aspects, params.deeper, params.link, params.documents)
        found: list[Topic] = []
        for topic in islice(drafter.topics(random.Random(context.seed)), params.topics):
            found.append(topic)
            context.progress(len(found), params.topics, "topics")
        num_heldout = round(params.heldout_fraction * len(found))
        sides = {"train": found[num_heldout:], "heldout": found[:num_heldout]}
        for name, topics in sides.items():
            self._write(context, name, topics, len(found))
        documents = sum(len(topic.items) for topic in found)
        counts = {f"{name}_topics": len(topics) for name, topics in sides.items()}
        context.metrics(**counts, documents=documents / len(found))
        samples = [_shown(topic) for topic in found[:5]]
        details = {"parameters": params.identity(), "seed": context.seed, "samples": samples}
        write_report(context.output("report"), "Topics", context.results, details)

    def _write(self, context: Context, name: str, topics: list[Topic], num: int) -> None:
        from stages.agent.report.records import write_topics

        if not topics:
            raise UserError(
                f"no topics for {name}: {num} found in all",
                fix="index more documents, lower `aspects`, or set `link: search`, which relates documents of any text",
            )
        card, out = context.dataset("index").card, context.output(name)
        write_topics(out, topics, licence=card.licence, source=card.source)
        self.params.rules().write(out)


def _shown(topic: Topic) -> dict[str, object]:
    deeper = {item.title: [below.title for below in topic.deeper(item.document)] for item in topic.aspects}
    return {"question": topic.query, "below": deeper, "checklist": {item.title: item.terms for item in topic.items}}
