"""`${params.NAME}` and `${matrix.NAME}`, replaced before a pipeline is typed. A gate's `${STAGE.METRIC}` stays.

A value that is one reference keeps the type of what it names; a reference inside a longer text is written into it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Final

from pipelines.spec.document import Path
from pipelines.spec.problems import Nearest

_REFERENCE: Final = re.compile(r"\$\{([^{}]*)\}")
LONGEST_TEXT: Final = 1_000_000
"""Characters that references may add to one text."""

Scopes = Mapping[str, Mapping[str, Any]]
Tell = Callable[[Path, str, str | Nearest], None]
"""Notes a problem: path, message, hint."""


def substitute(value: Any, path: Path, scopes: Scopes, tell: Tell) -> Any:
    """`value` with every reference replaced. Unknown and unclosed references are told and left as they are."""
    if isinstance(value, str):
        return _text(value, path, scopes, tell) if "${" in value else value
    if isinstance(value, dict):
        return {key: substitute(item, (*path, key), scopes, tell) for key, item in value.items()}
    if isinstance(value, list):
        return [substitute(item, (*path, index), scopes, tell) for index, item in enumerate(value)]
    return value


def substitute_known(value: Any, path: Path, scopes: Scopes, tell: Tell) -> Any:
    """Like `substitute` for the texts of a mapping, but references to other scopes stay: a gate names stages so."""
    if not isinstance(value, dict):
        return value

    def known(match: re.Match[str]) -> str:
        scope = match[1].strip().partition(".")[0]
        return str(_look_up(match[1].strip(), path, scopes, tell, match[0])) if scope in scopes else match[0]

    return {key: _REFERENCE.sub(known, item) if isinstance(item, str) else item for key, item in value.items()}


def references(value: Any, scope: str) -> set[str]:
    """The names of `scope` that `value` refers to."""
    if isinstance(value, str):
        found = (match.strip().partition(".") for match in _REFERENCE.findall(value)) if "${" in value else ()
        return {name for head, _, name in found if head == scope}
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return set().union(*(references(item, scope) for item in items))


def _text(text: str, path: Path, scopes: Scopes, tell: Tell) -> Any:
    if text.count("${") != len(_REFERENCE.findall(text)):
        tell(path, f"a reference is not closed in {text!r}", "write ${params.NAME}")
        return text
    whole = _REFERENCE.fullmatch(text)
    if whole:
        return _look_up(whole[1].strip(), path, scopes, tell, text)
    room = LONGEST_TEXT

    def written(match: re.Match[str]) -> str:
        nonlocal room
        found = str(_look_up(match[1].strip(), path, scopes, tell, match[0])) if room > 0 else ""
        room -= len(found)
        return found

    filled = _REFERENCE.sub(written, text)
    if room <= 0:
        tell(path, f"its references make this text longer than {LONGEST_TEXT:,} characters", "")
    return filled


def _look_up(reference: str, path: Path, scopes: Scopes, tell: Tell, otherwise: Any) -> Any:
    scope, _, name = reference.partition(".")
    if scope not in scopes or not name:
        tell(path, f"unknown reference ${{{reference}}}", Nearest(scope, [f"{known}.NAME" for known in scopes]))
    elif name not in scopes[scope]:
        tell(path, f"no {scope} named {name!r}", Nearest(name, scopes[scope]))
    else:
        return scopes[scope][name]
    return otherwise
