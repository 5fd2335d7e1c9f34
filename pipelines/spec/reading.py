"""Takes typed values out of a document. What is wrong is noted there, and reading goes on with a default."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, NoReturn

from pipelines.spec.document import Document, Path
from pipelines.spec.document import Mapping as Located
from pipelines.spec.problems import Nearest

MOST_GROWN: Final = 10_000_000
"""Values and characters in the bodies of all stages once matrices are spread out and references replaced: a small file
can ask for more than any memory holds."""
_EXPECTED: Final = {Located: "mapping", dict: "mapping", str: "text", int: "whole number"}


class Reader:
    """Reads one document, and counts how large it grows."""

    def __init__(self, document: Document) -> None:
        self.document = document
        self.tell = document.problem
        self.params: Mapping[str, Any] = {}
        """The parameters of the pipeline."""
        self.room = MOST_GROWN

    def typed(
        self, body: Mapping[str, Any], path: Path, key: str, kind: Any, default: Any, at_least: float | None = None
    ) -> Any:
        """`body[key]`, checked to be a `kind`; the default when it is not there or wrong."""
        value = body.get(key)
        if value is None:
            return default
        if not isinstance(value, kind) or isinstance(value, bool):
            expected = _EXPECTED.get(kind, "number")
            self.tell((*path, key), f"`{key}` must be a {expected}, found {kind_of(value)}")
            return default
        if at_least is not None and value < at_least:
            self.tell((*path, key), f"`{key}` must be at least {at_least:g}, found {value:g}")
            return default
        return value

    def quantity(self, path: Path, value: Any, parser: Callable[[Any], float]) -> float:
        """`value` as `parser` reads it; 1 when it cannot."""
        try:
            return parser(value)
        except ValueError as error:
            self.tell(path, str(error))
            return 1

    def unknown_keys(self, body: Mapping[str, Any], path: Path, valid: tuple[str, ...]) -> None:
        """Note each key of `body` that is not one of `valid`."""
        for key in body:
            if key not in valid:
                self.tell((*path, key), f"unknown key {key!r}", Nearest(key, valid), key=True)

    def grow(self, path: Path, value: Any) -> None:
        """Count what `value` adds to the pipeline. Raises SpecError when that is too much."""
        todo = [value]
        while todo and self.room > 0:
            item = todo.pop()
            self.room -= len(item) + 1 if isinstance(item, (str, list, dict)) else 1
            if isinstance(item, (list, dict)):
                todo.extend(item.values() if isinstance(item, dict) else item)
        if self.room <= 0:
            what = f"more than {MOST_GROWN:,} values and characters"
            self.stop(path, f"with its matrices and references, the pipeline grows to {what}")

    def stop(self, path: Path, message: str) -> NoReturn:
        """Tell a problem after which nothing more is read. Raises SpecError."""
        self.tell(path, message, key=True)
        self.document.raise_problems()
        raise AssertionError("a problem was told")


def kind_of(value: Any) -> str:
    """What a value is, in words: `text ('abc')`, `a list`, `nothing`."""
    if value is None:
        return "nothing"
    names = {bool: "a boolean", str: "text", int: "a number", float: "a number"}
    kind = names.get(type(value), "a mapping" if isinstance(value, dict) else "a list")
    return f"{kind} ({value!r})" if isinstance(value, (str, int, float)) else kind
