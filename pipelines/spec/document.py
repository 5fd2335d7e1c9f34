"""A YAML file as plain values that know where they stood.

Only plain data is ever made. Values are built from the parser's events without recursion, so a hostile file cannot
exhaust the stack, and scalars follow the core schema of YAML 1.2: `1e-5` is a number, `on` and `2:30` are text (1.1
has it the other way round). Tags, recursive aliases and files that aliases blow up are refused; duplicate keys are
problems.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path as File
from typing import Any, Final

import yaml

from pipelines.spec.problems import Nearest, Place, Problem, SpecError
from stages.errors import UserError

Path = tuple[str | int, ...]
Span = tuple[int, int, int]
"""Line and column, from 1, and width of a value."""

NOWHERE: Final[Span] = (0, 0, 1)
"""The span of what is not in the file, such as a value of `--set`."""

MOST_BYTES: Final = 8 << 20
MOST_VALUES: Final = 500_000
DEEPEST: Final = 60
LONGEST_NUMBER: Final = 1_000
"""Characters beyond which a scalar is text: nothing counts that far, and Python refuses to print such integers."""

_Loader: Final = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_TAG: Final = "tag:yaml.org,2002:"
_INT: Final = re.compile(r"[-+]?(?:[0-9][0-9_]*|0x[0-9a-fA-F_]+|0o[0-7_]+)")
_FLOAT: Final = re.compile(
    r"[-+]?(?:\.[0-9]+|[0-9][0-9_]*(?:\.[0-9_]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"
)
_WORDS: Final[dict[str, bool | None]] = {
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
}


class Mapping(dict[str, Any]):
    """A mapping with the span of each key and of each value."""

    def __init__(self) -> None:
        super().__init__()
        self.key_spans: dict[str, Span] = {}
        self.value_spans: dict[str, Span] = {}

    def put(self, key: str, value: Any, key_span: Span, value_span: Span) -> None:
        """Set `key` and where it and its value stand."""
        self[key] = value
        self.key_spans[key], self.value_spans[key] = key_span, value_span

    def duplicate(self) -> Mapping:
        """A copy whose keys can be set without changing this one."""
        copy = Mapping()
        for key, value in self.items():
            copy.put(key, value, self.key_spans[key], self.value_spans[key])
        return copy


class Sequence(list[Any]):
    """A sequence with the span of each item."""

    def __init__(self) -> None:
        super().__init__()
        self.spans: list[Span] = []


class Document:
    """A parsed file: `root`, its lines, and the problems found so far."""

    def __init__(self, file: str, text: str) -> None:
        self.file = file
        self.lines = text.split("\n")
        self.problems: list[Problem] = []
        self.root = _Builder(self).build(text)

    @classmethod
    def read(cls, file: File) -> Document:
        """Read and parse `file`. Raises UserError when it cannot be read, SpecError when it is not YAML."""
        try:
            with file.open("rb") as stream:
                data = stream.read(MOST_BYTES + 1)
            if len(data) > MOST_BYTES:
                message = f"the file has more than {MOST_BYTES:,} bytes, which no pipeline needs"
                raise UserError(message, where=f"{file}:1", fix="give a pipeline file")
            return cls(str(file), data.decode("utf-8"))
        except UnicodeDecodeError as error:
            raise _not_text(str(file), data, error) from None
        except OSError as error:
            raise UserError(
                f"cannot read {file}: {error.strerror}", fix="check the path of the pipeline file"
            ) from None

    def place(self, path: Path, *, key: bool = False) -> Place:
        """Where the value at `path` stands (its key, with `key`); the nearest ancestor's place if it is not there."""
        value, span = self.root, (1, 1, 1)
        for depth, part in enumerate(path):
            if isinstance(value, Mapping) and isinstance(part, str) and part in value:
                span = (value.key_spans if key and depth == len(path) - 1 else value.value_spans)[part]
                value = value[part]
            elif isinstance(value, Sequence) and isinstance(part, int) and part < len(value):
                span, value = value.spans[part], value[part]
            else:
                break
        return Place(*span)

    def problem(self, path: Path, message: str, hint: str | Nearest = "", *, key: bool = False) -> None:
        """Note a problem with the value (or key) at `path`."""
        self.problems.append(Problem(message, self.place(path, key=key), hint))

    def raise_problems(self) -> None:
        """Raise SpecError if any problem was noted."""
        if self.problems:
            raise SpecError(self.file, self.lines, self.problems)


class _Open:
    """A container whose end has not been read yet."""

    __slots__ = ("anchor", "before", "container", "key", "key_span", "merged", "merging", "span")

    def __init__(self, container: Mapping | Sequence, span: Span, anchor: str | None, before: int) -> None:
        self.container, self.span, self.anchor, self.before = container, span, anchor, before
        self.key: str | None = None
        self.key_span: Span = span
        self.merged: list[Any] = []
        self.merging = False
        """Whether the key is a plain `<<`; a quoted one is text."""


class _Builder:
    """Builds values from parser events, with an explicit stack."""

    def __init__(self, document: Document) -> None:
        self.document = document
        self.stack: list[_Open] = []
        self.anchors: dict[str, tuple[Any, int]] = {}
        self.count = 0
        self.root: Any = None
        self.documents = 0

    def build(self, text: str) -> Any:
        for event in self._events(text):
            self._take(event)
        return self.root

    def _events(self, text: str) -> Iterator[Any]:
        try:
            yield from yaml.parse(text, Loader=_Loader)
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            span = (mark.line + 1, mark.column + 1, 1) if mark else (1, 1, 1)
            self._refuse(span, f"not YAML: {error.problem or error.context}")
        except yaml.reader.ReaderError as error:
            before = text.encode("utf-8", "surrogatepass")[: error.position].decode("utf-8", "ignore")
            message = f"not YAML: the character U+{error.character:04X} is not allowed"
            self._refuse(_after(before), message, "write it as an escape")
        except (yaml.YAMLError, ValueError) as error:
            self._refuse((1, 1, 1), f"not YAML: {' '.join(str(error).split())}")

    def _take(self, event: Any) -> None:
        kind = type(event)
        if kind is yaml.ScalarEvent:
            span = _span(event)
            is_key = self._key_is_next() and event.tag is None
            if is_key:
                self.stack[-1].merging = event.implicit[0] and event.value == "<<"
            self._add(event.value if is_key else self._scalar(event, span), span, event.anchor)
        elif kind is yaml.MappingStartEvent or kind is yaml.SequenceStartEvent:
            self._start(event, Mapping() if kind is yaml.MappingStartEvent else Sequence())
        elif kind is yaml.MappingEndEvent or kind is yaml.SequenceEndEvent:
            self._end()
        elif kind is yaml.AliasEvent:
            self._alias(event)
        elif kind is yaml.DocumentStartEvent:
            self.documents += 1
            if self.documents > 1:
                self._refuse(_span(event), "a second document starts here: a pipeline file holds one")

    def _key_is_next(self) -> bool:
        """Whether a mapping waits for a key, which is text as it is written: `0E0:` is no number."""
        return bool(self.stack) and isinstance(self.stack[-1].container, Mapping) and self.stack[-1].key is None

    def _start(self, event: Any, container: Mapping | Sequence) -> None:
        span = _span(event)
        if event.tag not in (None, "!", f"{_TAG}map", f"{_TAG}seq"):
            self._refuse_tag(span, event.tag)
        if len(self.stack) >= DEEPEST:
            self._refuse(span, f"nested more than {DEEPEST} deep")
        if event.anchor:
            self.anchors.pop(event.anchor, None)
        self.stack.append(_Open(container, span, event.anchor, self.count))

    def _end(self) -> None:
        done = self.stack.pop()
        for source in done.merged:
            for key, value in source.items():
                if key not in done.container:
                    done.container.put(key, value, source.key_spans[key], source.value_spans[key])  # type: ignore
        self._add(done.container, done.span, done.anchor, size=self.count - done.before + 1)

    def _alias(self, event: Any) -> None:
        span = _span(event)
        if event.anchor not in self.anchors:
            inside = any(level.anchor == event.anchor for level in self.stack)
            self._refuse(
                span, f"the alias *{event.anchor} " + ("contains itself" if inside else "has no anchor before it")
            )
        value, size = self.anchors[event.anchor]
        self.count += size - 1
        self._add(value, span, None)

    def _add(self, value: Any, span: Span, anchor: str | None, size: int = 1) -> None:
        self.count += 1
        if self.count > MOST_VALUES:
            self._refuse(span, f"with its aliases, this file holds more than {MOST_VALUES:,} values")
        if anchor:
            self.anchors[anchor] = (value, size)
        if not self.stack:
            self.root = value
            return
        top = self.stack[-1]
        if isinstance(top.container, Sequence):
            top.container.append(value)
            top.container.spans.append(span)
        elif top.key is None:
            top.key, top.key_span = self._key(value, span), span
        else:
            self._pair(top, value, span)

    def _key(self, value: Any, span: Span) -> str:
        if isinstance(value, (Mapping, Sequence)):
            self._refuse(span, "a key must be text, found a " + ("mapping" if isinstance(value, Mapping) else "list"))
        return value if isinstance(value, str) else str(value)

    def _pair(self, top: _Open, value: Any, span: Span) -> None:
        key, mapping, merging = top.key or "", top.container, top.merging
        top.key, top.merging = None, False
        assert isinstance(mapping, Mapping)
        if merging:
            sources = value if isinstance(value, Sequence) else [value]
            if not all(isinstance(source, Mapping) for source in sources):
                self._refuse(span, "`<<` merges mappings only")
            top.merged.extend(sources)
            return
        if key in mapping:
            hint = f"first on line {mapping.key_spans[key][0]}"
            self.document.problems.append(Problem(f"the key {key!r} stands twice", Place(*top.key_span), hint))
        mapping.put(key, value, top.key_span, span)

    def _scalar(self, event: Any, span: Span) -> Any:
        text, tag = event.value, event.tag
        if tag is None:
            return self._bounded(plain(text), span) if event.implicit[0] else text
        kind = tag.removeprefix(_TAG)
        value = text if kind in ("str", "!") else plain(text)
        if kind not in ("str", "!", "int", "float", "bool", "null"):
            self._refuse_tag(span, tag)
        if kind in ("int", "float", "bool", "null") and type(value).__name__ not in (kind, "NoneType"):
            self._refuse(span, f"{text!r} is not a {kind}")
        return self._bounded(value, span)

    def _bounded(self, value: Any, span: Span) -> Any:
        """`value`, when a machine can count with it and JSON can write it."""
        if isinstance(value, float) and not math.isfinite(value):
            self._refuse(span, f"a number must be finite, found {value}", "quote it if it is text")
        if isinstance(value, int) and not -(1 << 63) <= value < 1 << 64:
            self._refuse(span, "a whole number must fit in 64 bits", "quote it if it is text")
        return value

    def _refuse_tag(self, span: Span, tag: str) -> None:
        self._refuse(span, f"the tag {tag} is not allowed: a pipeline file holds plain data")

    def _refuse(self, span: Span, message: str, hint: str = "") -> None:
        problems = [*self.document.problems, Problem(message, Place(*span), hint)]
        raise SpecError(self.document.file, self.document.lines, problems)


def plain(text: str) -> Any:
    """The value of an unquoted scalar, by the core schema of YAML 1.2 with `_` allowed inside numbers."""
    if text in _WORDS:
        return _WORDS[text]
    if text[0] not in "-+.0123456789" or len(text) > LONGEST_NUMBER:
        return text
    try:
        if _INT.fullmatch(text):
            digits = text.replace("_", "")
            return int(digits, 0) if digits.lstrip("+-")[:2] in ("0x", "0o") else int(digits)
        if _FLOAT.fullmatch(text):
            return float(text.lower().replace("_", "").replace(".inf", "inf").replace(".nan", "nan"))
    except ValueError:
        return text
    return text


def parse_value(text: str) -> Any:
    """The value that `text` has in YAML, as in `--set name=VALUE`. Raises SpecError when it is not YAML."""
    document = Document("--set", text)
    document.raise_problems()
    return document.root


def _not_text(file: str, data: bytes, error: UnicodeDecodeError) -> SpecError:
    before = data[: error.start].decode("utf-8")
    place = Place(*_after(before))
    problem = Problem(f"not UTF-8 text: byte 0x{data[error.start]:02x}", place, "save the file as UTF-8")
    return SpecError(file, data.decode("utf-8", "replace").split("\n"), [problem])


def _after(before: str) -> Span:
    """The span of the one character that follows the text `before`."""
    return before.count("\n") + 1, len(before) - before.rfind("\n"), 1


def _span(event: Any) -> Span:
    start, end = event.start_mark, event.end_mark
    width = end.column - start.column if end.line == start.line else 1
    return (start.line + 1, start.column + 1, width if width > 0 else 1)
