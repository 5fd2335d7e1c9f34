"""What can go wrong, seen from the person who has to mend it.

    RegraftError            anything this project raises on purpose
    ├── UserError           the input, the machine or the pipeline file is at fault: never retried, exit code 2
    │   └── DivergedError   training gave numbers that are none
    └── StageError          the work itself failed: retried when the stage says so, exit code 1
        └── StoppedError    it was asked to stop, and did

This module imports nothing but a type, so that every layer above `grafts` can raise from it for free.
"""

from __future__ import annotations

from collections.abc import Sequence


class RegraftError(Exception):
    """A failure with a message written for the user; `fix` is the next thing to try."""

    exit_code = 1

    def __init__(self, message: str, *, where: str = "", fix: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.where = where
        self.fix = fix

    def __str__(self) -> str:
        lines = [f"{self.where}: {self.message}" if self.where else self.message]
        if self.fix:
            lines.append(f"fix: {self.fix}")
        return "\n".join(lines)

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (type(self), self.message, self.where, self.fix)


class UserError(RegraftError):
    """Bad input: says what, where, what was found, what was expected, and the fix. Never retried."""

    exit_code = 2


class DivergedError(UserError):
    """A loss or a gradient became infinite or NaN while training."""


class StageError(RegraftError):
    """The work of a stage failed for a reason that may pass: a lost worker, a timeout, a full disk."""


class StoppedError(StageError):
    """The run asked the stage to stop and it did, with what it had saved: the next run goes on from there."""


def first_line(error: BaseException) -> str:
    """What an error says, in one line; its kind where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def listing(names: Sequence[str], limit: int = 8) -> str:
    """At most `limit` of `names` on one line."""
    rest = f" and {len(names) - limit} more" if len(names) > limit else ""
    return (", ".join(names[:limit]) or "nothing") + rest


def _rebuild(kind: type[RegraftError], message: str, where: str, fix: str) -> RegraftError:
    return kind(message, where=where, fix=fix)
