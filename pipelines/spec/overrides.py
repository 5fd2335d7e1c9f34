"""`--set` on the command line: one value of the file replaced before it is checked.

params.tokens=2_000_000        a parameter of the pipeline
student.learning_rate=1e-4     a parameter of a stage
student.resources.cpus=4       any other key of a stage
sweep.matrix.learning_rate=[1e-4]   the values of a matrix axis

What a matrix gives to a stage is changed at its axis and nowhere else: the arms are named by its values.
"""

from __future__ import annotations

import reprlib
from typing import Any, Final

from pipelines.spec.document import NOWHERE, Document, Mapping, parse_value
from pipelines.spec.matrix import stage_base
from pipelines.spec.problems import nearest
from pipelines.spec.template import references
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
        path, new = _path(document.root, target.strip(), text), parse_value(value)
        before = _named_axes(document.root, path)
        _write(document.root, path, new)
        _check_axes(document.root, path, before, text)


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
    base = stage_base(target)
    if "[" in parts[0] and base in known_stages:
        message = f"--set {text}: an arm of a matrix has no values of its own"
        fix = f"--set {base}.NAME=VALUE for all arms, or --set '{base}.matrix.AXIS=[VALUE, …]' for other arms"
        raise UserError(message, fix=fix)
    if parts[0] not in known_stages or len(parts) < 2:
        names = ["params.NAME", "seed", *(f"{stage}.PARAMETER" for stage in known_stages)]
        raise UserError(f"--set {text}: nothing is called {target!r}", fix=nearest(target, names))
    if len(parts) > DEEPEST:
        message = f"--set {text}: this name has {len(parts)} parts, at most {DEEPEST} are allowed"
        raise UserError(message, fix="name a value nearer to the top, and give all below it as YAML: NAME={a: {b: 1}}")
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


def _named_axes(root: Mapping, path: tuple[str, ...]) -> set[str]:
    """The matrix axes that the stage at `path` refers to."""
    stage = root["stages"][path[1]] if path[0] == "stages" else None
    body = stage if isinstance(stage, Mapping) else {}
    return references({key: value for key, value in body.items() if key != "matrix"}, "matrix")


def _check_axes(root: Mapping, path: tuple[str, ...], before: set[str], text: str) -> None:
    """Refuse what took the place of a value that the stage's matrix gives. Raises UserError naming the axis."""
    matrix = root["stages"][path[1]].get("matrix") if path[0] == "stages" else None
    if not isinstance(matrix, Mapping) or path[2] == "matrix":
        return
    now = _named_axes(root, path)
    given = path[3:] if path[2] == "with" else path[2:]
    own = set(given[:1]) if path[2] in ("with", "seed") else set()  # an axis that nothing refers to sets its namesake
    lost = sorted((before - now | own - now) & set(matrix))
    if lost:
        raise UserError(
            f"--set {text}: {'.'.join(given)!r} of stage {path[1]!r} is given by its matrix, "
            f"axis {lost[0]!r} = {reprlib.repr(matrix[lost[0]])}",
            fix=f"set the axis: --set '{path[1]}.matrix.{lost[0]}=[VALUE, …]'",
        )
