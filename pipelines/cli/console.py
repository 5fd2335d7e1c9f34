"""The console that every table is printed on."""

from __future__ import annotations

import os
from typing import IO, Final

from rich.console import Console

FILE_COLUMNS: Final = 160
"""Width where nobody looks through a window: in a file, a pipe, a CI log. `COLUMNS` sets another."""


def new_console(file: IO[str] | None = None) -> Console:
    """A console on `file` (stdout), as wide as the terminal; without one, wide enough not to break names."""
    made = Console(file=file, highlight=False)
    if not made.is_terminal and "COLUMNS" not in os.environ:
        made.width = FILE_COLUMNS
    return made
