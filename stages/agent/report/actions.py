"""What a writer of reports can do, and how it says so. Pure; imports nothing heavy.

An action is the answer of a turn (`stages.agent.conversation.messages`): its name on the first line, and what belongs
to it below, so that a small model has nothing to escape:

    initialize      search          write                            expand 2        terminate
    History         rye flour       Rye is denser than wheat [12].   Flour
    Uses            rye history                                      Sourdough
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Final, Literal

Name = Literal["initialize", "search", "write", "expand", "terminate"]
NAMES: Final[tuple[Name, ...]] = ("initialize", "search", "write", "expand", "terminate")
_HEAD: Final = re.compile(rf"({'|'.join(NAMES)})(?: +(\d+(?:\.\d+)*))?")


class ActionError(ValueError):
    """An action that cannot be read, or not be taken now: says what could be done instead."""


@dataclass(frozen=True)
class Initialize:
    """Begin with an outline of one level."""

    sections: tuple[str, ...]
    name: ClassVar[Name] = "initialize"


@dataclass(frozen=True)
class Search:
    """Look for documents for the section that is due."""

    queries: tuple[str, ...]
    name: ClassVar[Name] = "search"


@dataclass(frozen=True)
class Write:
    """The text of the section that is due."""

    text: str
    name: ClassVar[Name] = "write"


@dataclass(frozen=True)
class Expand:
    """Deepen a section, by its number (`2.1`), with subsections."""

    section: str
    subsections: tuple[str, ...]
    name: ClassVar[Name] = "expand"


@dataclass(frozen=True)
class Terminate:
    """The report is done."""

    name: ClassVar[Name] = "terminate"


Action = Initialize | Search | Write | Expand | Terminate


def write_action(action: Action) -> str:
    """The action as the answer of a turn; `parse_action` reads back the same."""
    match action:
        case Initialize(lines) | Search(lines):
            return _joined(action.name, lines)
        case Expand(section, lines):
            return _joined(f"expand {section}", lines)
        case Write(text):
            return f"write\n{text}"
        case Terminate():
            return "terminate"


def parse_action(answer: str) -> Action:
    """Read the answer of a turn. Raises ActionError for what is no action."""
    head, _, body = answer.strip().partition("\n")
    found = _HEAD.fullmatch(head.strip())
    if found is None or (found[1] == "expand") != bool(found[2]):
        raise ActionError(f"{head.strip()[:60]!r} is no action: the first line is {_forms()}")
    lines = tuple(" ".join(line.split()) for line in body.splitlines() if line.strip())
    match found[1]:
        case "initialize":
            return Initialize(lines)
        case "search":
            return Search(lines)
        case "write":
            return Write(body.strip())
        case "expand":
            return Expand(found[2], lines)
    if lines:
        raise ActionError("nothing follows terminate")
    return Terminate()


def _joined(head: str, lines: Sequence[str]) -> str:
    return "\n".join((head, *lines))


def _forms() -> str:
    return ", ".join("expand NUMBER" if name == "expand" else name for name in NAMES)
