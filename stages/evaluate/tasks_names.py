"""Which names a directory of task files declares, found by reading them as text.

The harness's own index of its 14,000 task files takes 20 seconds to build; this takes one, so that a misspelt task
stops a run before its first stage. The names found here contain all of the index's (a test compares them).
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

NO_TASKS: Final = frozenset({".py", ".pyc", ".md", ".json", ".jsonl", ".csv", ".parquet"})
"""Files that lie beside task files; those that tasks include may have any name."""

NAMED: Final = re.compile(
    r"""^[ \t-]*["']?(?:task|group|tag|class)["']?[ \t]*:[ \t]*(.*)$   # task: name, tag: [one, two]
    |^[ \t]*(?:-[ \t]+)?([^\s:]+)[ \t]*$                               # one name of a list on several lines
    """,
    re.MULTILINE | re.VERBOSE,
)


def names_in(directory: Path) -> set[str]:
    """Every task, group and tag that the files below `directory` declare, and some words that are none."""
    files = (file for file in directory.rglob("*") if file.suffix not in NO_TASKS and file.is_file())
    return {name for file in files for name in _names(file.read_text(encoding="utf-8", errors="replace"))}


def harness_tasks() -> Path | None:
    """The directory of the task files that the installed `lm_eval` brings, which is not imported; None without it."""
    found = importlib.util.find_spec("lm_eval")
    return Path(found.origin).parent / "tasks" if found is not None and found.origin else None


def _names(text: str) -> Iterator[str]:
    for match in NAMED.finditer(text):
        for part in re.split(r"[\[\],]", (match[1] or match[2] or "").partition(" #")[0]):
            if name := part.strip("\"' "):
                yield name
