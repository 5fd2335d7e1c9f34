"""What a writer sees of a report: the state as a prompt for the next action, and the whole as Markdown."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from stages.agent.conversation.messages import Message
from stages.agent.report.state import Evidence, Limits, Section, State, expandable, possible

SYSTEM: Final = (
    "You write a report from documents, one action at a time. Each turn is a thought and an action:\n"
    "<think>…</think>\n<answer>…</answer>\n"
    "The action's name is the first line of the answer; what belongs to it stands below."
)
_CITATION: Final = re.compile(r"\[(\d{1,9})\]")


@dataclass(frozen=True)
class View:
    """How much of a report a prompt shows, beside the outline and the documents found for the section that is due."""

    draft: int = 200
    """Characters of what is written: the end of it to write on, the beginning of each section to decide by."""


def prompt(state: State, limits: Limits, view: View, refusal: str = "") -> tuple[Message, ...]:
    """The messages before the next action; `refusal` is what was wrong with the one before."""
    parts = [f"Report: {state.query}", *_outline(state, limits, view), *_material(state, view)]
    parts += [f"Refused: {refusal}."] if refusal else []
    return Message("system", SYSTEM), Message("user", "\n\n".join([*parts, f"Next: {_request(state, limits)}"]))


def citations(text: str) -> list[int]:
    """The documents that a text cites as `[12]`, each once, in the order in which they come."""
    return list(dict.fromkeys(int(number) for number in _CITATION.findall(text)))


def without_citations(text: str) -> str:
    """A text as its readers hear it."""
    return " ".join(re.sub(rf"\s*{_CITATION.pattern}", "", text).split())


def markdown(state: State) -> str:
    """The report, numbered, with the documents that it cites at its end."""
    lines = [f"# {state.query}", ""]
    known: dict[int, str] = {}
    cited: list[int] = []
    for number, section in state.walk():
        lines += [f"{'#' * (number.count('.') + 2)} {number} {section.title}", ""]
        lines += [section.text, ""] if section.text else []
        known |= {found.id: found.title for found in section.evidence or ()}
        cited += citations(section.text)
    sources = [f"[{number}] {known[number]}" for number in dict.fromkeys(cited) if number in known]
    lines += ["## Sources", "", *[f"- {source}" for source in sources], ""] if sources else []
    return "\n".join(lines)


def unused(state: State, section: Section) -> list[Evidence]:
    """What was found for a section and is cited nowhere in the report."""
    cited = {number for _, one in state.walk() for number in citations(one.text)}
    return [found for found in section.evidence or () if found.id not in cited]


def _outline(state: State, limits: Limits, view: View) -> Iterator[str]:
    """The sections; where the writer decides what to deepen, with what they say and what they leave unused."""
    if not state.sections:
        return
    deciding = "terminate" in possible(state, limits)
    lines = []
    for number, section in state.walk():
        lines.append(f"{'  ' * number.count('.')}{number} {section.title}")
        if deciding and not section.subsections:
            lines.append(f"  says: {_cut(section.text, view.draft)}")
            lines += [f"  unused: [{found.id}] {found.title}" for found in unused(state, section)]
    yield "\n".join(["Outline:", *lines])


def _material(state: State, view: View) -> Iterator[str]:
    """What there is to write from: the end of the draft, and what was found for the section that is due."""
    if state.due is None or state.due[1].evidence is None:
        return
    written = " ".join(section.text for _, section in state.walk() if section.text)
    if written:
        yield f"So far: {'…' * (len(written) > view.draft)}{written[-view.draft :]}"
    found = [f"[{one.id}] {one.title}: {one.text}" for one in state.due[1].evidence]
    yield "\n".join(["Found:", *found]) if found else "Found: nothing"


def _request(state: State, limits: Limits) -> str:
    few = f"{limits.fewest} to {limits.most}"
    match possible(state, limits):
        case ("initialize",):
            return f"initialize, and {few} titles of sections below."
        case ("search",):
            return f"search, and up to {limits.queries} queries below, for {_due(state)}."
        case ("write",):
            return f"write, and the text of {_due(state)} below; cite documents as [12]."
        case ("terminate",):
            return "terminate."
        case ():
            return "nothing."
    return f"expand NUMBER ({', '.join(expandable(state, limits))}), and {few} titles below; or terminate."


def _due(state: State) -> str:
    assert state.due is not None, "asked only where a section is due"
    number, section = state.due
    return f"section {number} {section.title}"


def _cut(text: str, most: int) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= most else flat[:most].rstrip() + "…"
