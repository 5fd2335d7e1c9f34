"""A stage's matrix: from one stage of the file to its arms, each a body with every reference replaced."""

from __future__ import annotations

import hashlib
import itertools
import math
import re
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from pipelines.spec.document import Mapping as Located
from pipelines.spec.document import Path
from pipelines.spec.reading import Reader, kind_of
from pipelines.spec.template import references, substitute, substitute_known

MOST_ARMS: Final = 10_000
LONGEST_ARM: Final = 200
"""Characters of one value, which becomes part of a stage's name."""


class Arm(NamedTuple):
    """One combination of a stage's matrix; a stage without a matrix has one."""

    name: str
    """`student`, or `sweep[learning_rate=0.001]`."""
    path: Path
    body: dict[str, Any]


def expand(reader: Reader, base: str, path: Path, body: Located) -> list[Arm]:
    """The arms of the stage called `base`; none, and a problem noted, when its matrix is wrong."""
    axes = _axes(reader, (*path, "matrix"), reader.typed(body, path, "matrix", Located, Located()))
    if axes is None:
        return []
    rest = {key: value for key, value in body.items() if key != "matrix"}
    named = references(rest, "matrix")
    combinations = itertools.product(*axes.values())
    return [_arm(reader, base, path, rest, dict(zip(axes, values, strict=True)), named) for values in combinations]


def stage_base(name: str) -> str:
    """The name in the file of the stage or arm called `name`."""
    return name.partition("[")[0]


def is_broken(name: str, arms: Mapping[str, list[str]]) -> bool:
    """Whether `name` is that of a stage without arms, or of one of them: what is wrong with it is told already."""
    return arms.get(stage_base(name)) == []


def stage_slug(name: str) -> str:
    """A stage's name made safe for file names: the same for an arm whatever other arms the matrix has."""
    base, bracket, label = name.partition("[")
    if not bracket:
        return base
    readable = re.sub(r"[^A-Za-z0-9]+", "_", label).strip("_")
    return f"{base[:36]}-{readable[:32]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def _axes(reader: Reader, path: Path, matrix: Located) -> dict[str, list[Any]] | None:
    """The values of each axis, or None when something is wrong with one."""
    for key, values in matrix.items():
        if not isinstance(values, list) or not values:
            reader.tell((*path, key), f"a matrix axis is a list of scalars, found {kind_of(values)}")
            return None
    scopes = {"params": reader.params}
    axes = {
        key: [substitute(value, (*path, key), scopes, reader.tell) for value in values]
        for key, values in matrix.items()
    }
    if not all(_is_nameable(reader, (*path, key), key, values) for key, values in axes.items()):
        return None
    count = math.prod(map(len, axes.values()))
    if count > MOST_ARMS:
        reader.tell(path, f"the matrix has {count:,} arms; at most {MOST_ARMS:,} are allowed")
        return None
    return axes


def _is_nameable(reader: Reader, path: Path, key: str, values: list[Any]) -> bool:
    """Whether the values can be part of the names of stages."""
    if not key.isprintable():
        reader.tell(path, f"the name of a matrix axis must be printable, found {key!r}", key=True)
        return False
    for index, value in enumerate(values):
        if isinstance(value, (dict, list)):
            reader.tell((*path, index), f"a matrix axis is a list of scalars, found {kind_of(value)} in it")
            return False
        if not str(value).isprintable() or len(str(value)) > LONGEST_ARM:
            rule = f"it must be printable and have at most {LONGEST_ARM} characters"
            reader.tell((*path, index), f"a matrix value is part of the stage's name: {rule}, found {value!r}")
            return False
    return True


def _arm(reader: Reader, base: str, path: Path, body: dict[str, Any], values: dict[str, Any], named: set[str]) -> Arm:
    filled = _filled(reader, path, body, {"params": reader.params, **({"matrix": values} if values else {})})
    direct = {key: value for key, value in values.items() if key not in named}
    if "seed" in direct and "seed" not in body:
        filled["seed"] = direct.pop("seed")
    if direct and isinstance(filled.get("with", {}), dict):
        filled["with"] = {**(filled.get("with") or {}), **direct}
    reader.grow(path, filled)
    label = ",".join(f"{key}={value}" for key, value in values.items())
    return Arm(f"{base}[{label}]" if values else base, path, filled)


def _filled(reader: Reader, path: Path, body: dict[str, Any], scopes: dict[str, Any]) -> dict[str, Any]:
    """The body with references replaced; those of a gate to other stages stay."""
    rest = {key: value for key, value in body.items() if key != "expect"}
    filled = substitute(rest, path, scopes, reader.tell)
    if body.get("expect") is not None:
        filled["expect"] = substitute_known(body["expect"], (*path, "expect"), scopes, reader.tell)
    return filled
