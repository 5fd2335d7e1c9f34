"""Problems of a pipeline file, told all together: file, line, column, the line itself, and the nearest valid name."""

from __future__ import annotations

import bisect
import difflib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final

from stages.errors import UserError

MOST_CHARACTERS: Final = 1_000
"""Of one message; the value that it quotes may be the whole file."""
LONGEST_NAME: Final = 200
"""Characters beyond which a name is not compared with others: that takes time with the square of them."""


@dataclass(frozen=True)
class Place:
    """A span on one line of a file; line and column count from 1, and line 0 means that it came from `--set`."""

    line: int = 0
    column: int = 0
    width: int = 1


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong: what was found, and what was expected or how to mend it."""

    message: str
    place: Place
    hint: str | Nearest = ""

    def render(self, file: str, lines: Sequence[str]) -> str:
        """The problem as people read it: a headline, the line with a marker, the hint."""
        message, hint = _told(self.message), _told(str(self.hint))
        if not self.place.line:
            return f"{file} with --set: {message}" + (f"\n   = {hint}" if hint else "")
        number = str(self.place.line)
        text = lines[self.place.line - 1].rstrip() if self.place.line <= len(lines) else ""
        # The parser may place the end of what it misses beyond the line.
        shown, column = _window(text, min(self.place.column, len(text) + 1))
        gutter = " " * len(number)
        marker = " " * (column - 1) + "^" * max(1, min(self.place.width, len(shown) - column + 1))
        frame = [
            f"{file}:{self.place.line}:{self.place.column}: {message}",
            f" {number} | {shown}",
            f" {gutter} | {marker}",
        ]
        return "\n".join([*frame, f" {gutter} = {hint}"] if hint else frame)


class SpecError(UserError):
    """Every problem of one pipeline file."""

    def __init__(self, file: str, lines: Sequence[str], problems: Sequence[Problem], most: int = 20) -> None:
        self.problems = sorted(problems, key=lambda problem: (problem.place.line, problem.place.column))
        shown = [problem.render(file, lines) for problem in self.problems[:most]]
        if len(self.problems) > most:
            shown.append(f"… and {len(self.problems) - most} more")
        count = f"{len(self.problems)} problem{'s' if len(self.problems) != 1 else ''} in {file}; nothing was run"
        super().__init__("\n\n".join([*shown, count]))


@dataclass(frozen=True)
class Nearest:
    """A hint that names the nearest valid name; it is looked for when the hint is shown, and most never are."""

    name: str
    valid: Collection[str]

    def __str__(self) -> str:
        return nearest(self.name, self.valid)


def nearest(name: str, valid: Collection[str]) -> str:
    """A hint that names the nearest valid name, if one is near, and lists what is valid."""
    names = sorted(set(valid))
    near = difflib.get_close_matches(name, _neighbours(name, names), n=1, cutoff=0.5)
    suggestion = f"did you mean {near[0]!r}? " if near else ""
    if not names:
        return suggestion + "none are defined here"
    listed = ", ".join(names[:12]) + (f", … ({len(names)} in all)" if len(names) > 12 else "")
    return f"{suggestion}valid: {listed}"


def _neighbours(name: str, names: Sequence[str], most: int = 400) -> list[str]:
    """Those of the sorted `names` worth comparing: the alphabet's neighbours of `name`, and nothing endless."""
    if len(name) > LONGEST_NAME:
        return []
    at = bisect.bisect(names, name)
    return [near for near in names[max(0, at - most) : at + most] if len(near) <= LONGEST_NAME]


def _window(text: str, column: int, width: int = 100) -> tuple[str, int]:
    """Cut a long line to `width` characters around `column`; returns the cut text and the column in it."""
    start = max(0, column - 1 - width // 3) if len(text) > width else 0
    return printable(text[start : start + width]), column - start


def _told(text: str) -> str:
    """`text`, safe to print, without the middle of a value that fills screens."""
    if len(text) > MOST_CHARACTERS:
        text = f"{text[: MOST_CHARACTERS // 2]} … {text[-MOST_CHARACTERS // 2 :]}"
    return printable(text)


def printable(text: str) -> str:
    """`text` with a mark for each character that would move the cursor or turn the text round in a terminal."""
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() or letter == "\n" else "\ufffd" for letter in text.replace("\t", " "))
