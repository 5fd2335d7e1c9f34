"""Judges: what reports and their parts are worth from 1 to 5; by rule in `judge_rule`, by a model in `judge_model`."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from stages.agent.report.state import Evidence, State
from stages.agent.report.topics import Item, Topic
from stages.agent.report.view import markdown

Criterion = Literal[
    "guidance", "hierarchy", "logic",
    "relevance", "coverage", "depth", "novelty",
    "comprehensiveness", "insight", "instruction", "readability",
]  # fmt: skip
PLAN: Final[tuple[Criterion, ...]] = ("guidance", "hierarchy", "logic")
TEXT: Final[tuple[Criterion, ...]] = ("relevance", "coverage", "depth", "novelty")
REPORT: Final[tuple[Criterion, ...]] = ("comprehensiveness", "insight", "instruction", "readability")


@dataclass(frozen=True)
class Plan:
    """Titles of sections, for a whole report or below one section."""

    topic: Topic
    state: State
    """Before the titles are part of it."""
    titles: tuple[str, ...]
    parent: str = ""
    """Title of the section that is deepened; "" for an outline."""

    def shown(self) -> str:
        """As a model reads it."""
        where = f"Subsections of “{self.parent}”" if self.parent else "Sections"
        return "\n".join([f"Question: {self.topic.query}", f"{where}:", *[f"- {title}" for title in self.titles]])

    @property
    def wanted(self) -> tuple[Item, ...]:
        """What the titles should name."""
        about = self.topic.about(self.parent) if self.parent else None
        return self.topic.deeper(about.document) if about else () if self.parent else self.topic.aspects


@dataclass(frozen=True)
class Text:
    """The text of one section."""

    topic: Topic
    state: State
    """Before the text is part of it: its section is due, and was searched for."""
    text: str

    def shown(self) -> str:
        """As a model reads it."""
        found = [f"[{one.id}] {one.title}: {one.text}" for one in self.evidence]
        return "\n".join([f"Question: {self.topic.query}", f"Section: {self.title}", *found, f"Text: {self.text}"])

    @property
    def title(self) -> str:
        """Of the section."""
        assert self.state.due is not None, "a text is judged where a section is due"
        return self.state.due[1].title

    @property
    def evidence(self) -> tuple[Evidence, ...]:
        """What was found for the section."""
        assert self.state.due is not None, "a text is judged where a section is due"
        return self.state.due[1].evidence or ()


@dataclass(frozen=True)
class Draft:
    """A whole report, finished or not."""

    topic: Topic
    state: State

    def shown(self) -> str:
        """As a model reads it."""
        return f"Question: {self.topic.query}\n{markdown(self.state)}"


Work = Plan | Text | Draft


class Judge(ABC):
    """Rates work by criteria."""

    @abstractmethod
    def rate(self, work: Work, criteria: Sequence[Criterion]) -> dict[Criterion, float]:
        """A rating in [1, 5] for each criterion."""

    def value(self, work: Work, criteria: Sequence[Criterion]) -> float:
        """The mean rating, brought to [0, 1]."""
        ratings = self.rate(work, criteria)
        return (math.fsum(ratings.values()) / len(ratings) - 1) / 4
