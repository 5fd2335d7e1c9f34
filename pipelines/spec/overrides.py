"""`--set` on the command line: one value of the file replaced before it is checked.

params.tokens=2_000_000        a parameter of the pipeline
student.learning_rate=1e-4     a parameter of a stage
student.resources.cpus=4       any other key of a stage
"""

from __future__ import annotations

from typing import Any, Final

from pipelines.spec.document import NOWHERE, Document, Mapping, parse_value
from pipelines.spec.problems import nearest
from stages.errors import UserError

DEEPEST: Final = 20
STAGE_KEYS: Final = (
    "uses",
    "with",
    "inputs",
    "needs",
    "matrix",
    "max_parallel",
    "resources",
    "retries",
    "timeout",
    "expect",
    "seed",
)


def apply(document: Document, overrides: tuple[str, ...]) -> None:
    """Write each override into the document. Raises UserError for one that names nothing."""
    if not isinstance(document.root, Mapping):
        return
    for text in overrides:
        target, equals, value = text.partition("=")
        if not equals or not target.strip():
            raise UserError(f"--set {text}: expected NAME=VALUE", fix="for example --set params.tokens=50000")
        _write(document.root, _path(document.root, target.strip(), text), parse_value(value))


def _path(root: Mapping, target: str, text: str) -> tuple[str, ...]:
    parts = tuple(target.split("."))
    params, stages = root.get("params"), root.get("stages")
    if parts[0] == "seed" and len(parts) == 1:
        return parts
    if parts[0] == "params" and len(parts) == 2:
        known = params if isinstance(params, Mapping) else {}
        if parts[1] not in known:
            raise UserError(f"--set {text}: the pipeline has no parameter {parts[1]!r}", fix=nearest(parts[1], known))
        return parts
    known_stages = stages if isinstance(stages, Mapping) else {}
    if parts[0] not in known_stages or len(parts) < 2:
        names = ["params.NAME", "seed", *(f"{stage}.PARAMETER" for stage in known_stages)]
        raise UserError(f"--set {text}: nothing is called {target!r}", fix=nearest(target, names))
    if len(parts) > DEEPEST:
        raise UserError(f"--set {text}: this name has {len(parts)} parts, at most {DEEPEST} are allowed")
    inner = parts[1:] if parts[1] in STAGE_KEYS else ("with", *parts[1:])
    return ("stages", parts[0], *inner)


def _write(root: Mapping, path: tuple[str, ...], value: Any) -> None:
    mapping = root
    for part in path[:-1]:
        inner = mapping.get(part)
        # A mapping may stand in several places through an alias: only this one changes.
        fresh = inner.duplicate() if isinstance(inner, Mapping) else Mapping()
        mapping.put(part, fresh, mapping.key_spans.get(part, NOWHERE), mapping.value_spans.get(part, NOWHERE))
        mapping = fresh
    mapping.put(path[-1], value, NOWHERE, NOWHERE)
