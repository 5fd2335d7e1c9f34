"""Problems of a pipeline file, told all together: file, line, column, the line itself, and the nearest valid name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from stages.errors import UserError


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
    hint: str = ""

    def render(self, file: str, lines: Sequence[str]) -> str:
        """The problem as people read it: a headline, the line with a marker, the hint."""
        if not self.place.line:
            return f"{file} with --set: {self.message}" + (f"\n   = {self.hint}" if self.hint else "")
        number = str(self.place.line)
        text = lines[self.place.line - 1].rstrip() if self.place.line <= len(lines) else ""
        shown, column = _window(text, self.place.column)
        gutter = " " * len(number)
        marker = " " * (column - 1) + "^" * max(1, min(self.place.width, len(shown) - column + 1))
        frame = [
            f"{file}:{self.place.line}:{self.place.column}: {self.message}",
            f" {number} | {shown}",
            f" {gutter} | {marker}",
        ]
        return "\n".join([*frame, f" {gutter} = {self.hint}"] if self.hint else frame)


class SpecError(UserError):
    """Every problem of one pipeline file."""

    def __init__(self, file: str, lines: Sequence[str], problems: Sequence[Problem], most: int = 20) -> None:
        self.problems = sorted(problems, key=lambda problem: (problem.place.line, problem.place.column))
        shown = [problem.render(file, lines) for problem in self.problems[:most]]
        if len(self.problems) > most:
            shown.append(f"… and {len(self.problems) - most} more")
        count = f"{len(self.problems)} problem{'s' if len(self.problems) != 1 else ''} in {file}; nothing was run"
        super().__init__("\n\n".join([*shown, count]))


def nearest(name: str, valid: Iterable[str]) -> str:
    """A hint that names the nearest valid name, if one is near, and lists what is valid."""
    names = sorted(set(valid))
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    suggestion = f"did you mean {near[0]!r}? " if near else ""
    if not names:
        return suggestion + "none are defined here"
    listed = ", ".join(names[:12]) + (f", … ({len(names)} in all)" if len(names) > 12 else "")
    return f"{suggestion}valid: {listed}"


def _window(text: str, column: int, width: int = 100) -> tuple[str, int]:
    """Cut a long line to `width` characters around `column`; returns the cut text and the column in it."""
    if len(text) <= width:
        return text, column
    start = max(0, column - 1 - width // 3)
    return text[start : start + width], column - start
