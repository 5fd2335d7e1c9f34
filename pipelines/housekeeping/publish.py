"""Takes out of a text what must not leave the machine with an exported model: local paths and secrets."""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from typing import Any, Final

from pipelines.lineage.redact import Redactor

PATH: Final = re.compile(r"(?<![\w.:/@*+%~-])(?:file://|~)?/[\w.~-][^\s'\",;)\]}]*")
"""An absolute path inside a text; `a/b`, `https://…` and a lone `/` are none."""


class Publisher:
    """Cleans what is published; `known` is where secrets may stand, so that they are found wherever else they are."""

    def __init__(self, known: Any) -> None:
        self.redactor = Redactor(known)

    def tree(self, value: Any) -> Any:
        """A copy of a JSON value, clean."""
        return self._paths(self.redactor.tree(value))

    def text(self, text: str) -> str:
        """`text`, clean. A path is told by its last part."""
        cleaned = self.redactor.text(text)
        if cleaned.startswith(("/", "~/", "file://")) and "\n" not in cleaned:
            return _last(cleaned)
        return PATH.sub(lambda match: _last(match[0]), cleaned)

    def _paths(self, value: Any) -> Any:
        if isinstance(value, dict):
            return {key: self._paths(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self._paths(item) for item in value]
        return self.text(value) if isinstance(value, str) else value


def _last(path: str) -> str:
    return PurePosixPath(path).name or "…"
