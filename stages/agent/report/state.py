"""WARP, writing as a reasoning policy: what a report in the making is, and what may be done to it (arXiv 2602.06540).

    initialize → (search → write) for every leaf → expand a leaf → (search → write) for the new ones → … → terminate

States are values; `advanced` gives the next one or refuses, telling what would have been possible. Nothing here runs a
model or a tool: what a search found is handed in. The same actions and findings always give the same report.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from stages.agent.report.actions import Action, ActionError, Expand, Initialize, Name, Search, Terminate, Write


@dataclass(frozen=True)
class Limits:
    """How far a report may go; the defaults are the paper's."""

    levels: int = 3
    """Levels of sections."""
    expansions: int = 12
    """Sections that are deepened."""
    steps: int = 140
    """Actions in all."""
    fewest: int = 2
    """Sections of an outline or of an expansion at least."""
    most: int = 7
    """Sections of an outline or of an expansion at most."""
    queries: int = 3
    """Queries of one search at most."""


@dataclass(frozen=True)
class Evidence:
    """A document that a search found, by its number in the collection, with as much of its text as is shown."""

    id: int
    title: str
    text: str


@dataclass(frozen=True)
class Section:
    """A part of the report."""

    title: str
    text: str = ""
    evidence: tuple[Evidence, ...] | None = None
    """What was found for it; None while nothing was searched for."""
    subsections: tuple[Section, ...] = ()


@dataclass(frozen=True)
class State:
    """A report in the making: the question, the outline with what is written, and what was found."""

    query: str
    sections: tuple[Section, ...] = ()
    expansions: int = 0
    steps: int = 0
    finished: bool = False
    """Whether the writer has terminated it."""

    def walk(self) -> Iterator[tuple[str, Section]]:
        """Every section under its number, in reading order."""
        return _walk(self.sections, "")

    def leaves(self) -> list[tuple[str, Section]]:
        """The sections without subsections, under their numbers, in reading order."""
        return [(number, section) for number, section in self.walk() if not section.subsections]

    @property
    def due(self) -> tuple[str, Section] | None:
        """The section to be written next: the first leaf without a text."""
        return next(((number, section) for number, section in self.leaves() if not section.text), None)


def possible(state: State, limits: Limits) -> tuple[Name, ...]:
    """The actions that may be taken now; none when the report is finished or out of steps."""
    if state.finished or state.steps >= limits.steps:
        return ()
    if not state.sections:
        return ("initialize",)
    if state.due:
        return ("search",) if state.due[1].evidence is None else ("write",)
    return ("expand", "terminate") if expandable(state, limits) else ("terminate",)


def expandable(state: State, limits: Limits) -> list[str]:
    """Numbers of the sections that may be deepened: leaves above the last level, while expansions are left."""
    if state.expansions >= limits.expansions:
        return []
    return [number for number, _ in state.leaves() if number.count(".") + 1 < limits.levels]


def advanced(state: State, action: Action, limits: Limits, found: Sequence[Evidence] = ()) -> State:
    """The state after `action`; `found` is what a search has found, best first.

    Raises ActionError, in words for the model, for an action that is not possible, telling those that are.
    """
    _check(state, action, limits)
    after = replace(state, steps=state.steps + 1)
    match action:
        case Initialize(titles):
            return replace(after, sections=tuple(map(Section, titles)))
        case Search():
            return _with_due(after, evidence=tuple(dict.fromkeys(found)))
        case Write(text):
            return _with_due(after, text=text)
        case Expand(number, titles):
            new = tuple(map(Section, titles))
            sections = _changed(after.sections, _path(number), subsections=new)
            return replace(after, sections=sections, expansions=state.expansions + 1)
        case Terminate():
            return replace(after, finished=True)


def _check(state: State, action: Action, limits: Limits) -> None:
    options = possible(state, limits)
    if action.name not in options:
        raise ActionError(f"{action.name} is not possible now; possible: {' or '.join(options) or 'nothing more'}")
    match action:
        case Initialize(titles) | Expand(_, titles):
            _check_count(len(titles), limits.fewest, limits.most, f"titles below {action.name}")
            _check_new(titles)
        case Search(queries):
            _check_count(len(queries), 1, limits.queries, "queries below search")
        case Write(text) if not text:
            raise ActionError("there is no text below write")
    if isinstance(action, Expand) and action.section not in expandable(state, limits):
        options = ", ".join(expandable(state, limits))
        raise ActionError(f"section {action.section} cannot be expanded; possible: {options}")


def _check_count(found: int, least: int, most: int, what: str) -> None:
    if not least <= found <= most:
        raise ActionError(f"{found} {what}; possible: {least} to {most}")


def _check_new(titles: Sequence[str]) -> None:
    if len({title.casefold() for title in titles}) < len(titles):
        raise ActionError("a title stands twice; possible: distinct titles")


def _walk(sections: Sequence[Section], prefix: str) -> Iterator[tuple[str, Section]]:
    for place, section in enumerate(sections, start=1):
        yield f"{prefix}{place}", section
        yield from _walk(section.subsections, f"{prefix}{place}.")


def _with_due(state: State, **changes: object) -> State:
    assert state.due is not None, "checked: a section is due"
    return replace(state, sections=_changed(state.sections, _path(state.due[0]), **changes))


def _path(number: str) -> list[int]:
    return [int(part) - 1 for part in number.split(".")]


def _changed(sections: tuple[Section, ...], path: Sequence[int], **changes: object) -> tuple[Section, ...]:
    """The sections with changes to the one at the end of `path`."""
    place, *deeper = path
    old = sections[place]
    new = replace(old, subsections=_changed(old.subsections, deeper, **changes)) if deeper else replace(old, **changes)
    return (*sections[:place], new, *sections[place + 1 :])
