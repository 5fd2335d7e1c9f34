"""Why a stage runs or does not: each reason as a value for machines and as a line for people."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final, Literal

from pipelines.planning.canonical import is_digest
from pipelines.planning.fingerprint import source_file
from pipelines.store import Manifest

Kind = Literal[
    "new", "method", "parameter", "input", "source", "seed", "code", "damaged", "gone", "waits", "forced", "taken",
    "left", "made", "accepted",
]  # fmt: skip
DRIFT: Final = frozenset({"code"})
"""Kinds of change that a person may accept without making the artifact anew."""
SHORT: Final = 8
"""Hex digits of a digest that people see."""


@dataclass(frozen=True)
class Reason:
    """One reason; `before` and `after` are plain JSON values where it is a change."""

    kind: Kind
    text: str
    """The reason as people read it."""
    name: str = ""
    """What changed: a parameter, an input, a source, `module:name` of a definition, a stage waited for."""
    before: Any = None
    after: Any = None

    def __str__(self) -> str:
        return self.text

    def as_json(self) -> dict[str, Any]:
        """The reason for machines."""
        return {name: value for name, value in vars(self).items() if value not in ("", None)}


def differences(
    old: Manifest, identity: Mapping[str, Any], code: Mapping[str, str], origins: Mapping[str, Sequence[str]]
) -> list[Reason]:
    """What changed since `old`, field by field.

    `origins` names, for each input, the stage outputs it reads. A digest that is None is not known yet and is passed
    over, and so are fields that `identity` lacks.
    """
    before = old.identity
    changes: list[Reason] = []
    if before.get("method") != identity["method"]:
        text = f"uses {before.get('method')} → {identity['method']}"
        changes.append(Reason("method", text, "uses", before.get("method"), identity["method"]))
    changes.extend(_values("params", before.get("params", {}), identity["params"]))
    changes.extend(_inputs(before.get("inputs", {}), identity.get("inputs", {}), origins))
    changes.extend(_sources(before.get("sources", {}), identity.get("sources", before.get("sources", {}))))
    if before.get("seed") != identity["seed"]:
        text = f"seed {before.get('seed')} → {identity['seed']}"
        changes.append(Reason("seed", text, "seed", before.get("seed"), identity["seed"]))
    if before.get("code") != identity["code"]:
        changes.extend(code_changes(old.code, code))
    return changes


def code_changes(before: Mapping[str, str], after: Mapping[str, str]) -> Iterator[Reason]:
    """Definitions that differ, by `module:name`."""
    for definition in sorted({*before, *after}):
        old, new = before.get(definition), after.get(definition)
        if old == new:
            continue
        name = definition.partition(":")[2]
        what = "" if name.startswith("(") else f" {name}"
        verb = "changed" if old and new else "is new" if new else "is gone"
        yield Reason("code", f"code: {source_file(definition)}{what} {verb}", definition, old, new)


def as_written(value: Any) -> str:
    """A parameter's value as people write it in a pipeline file: `1e-4`, `200_000`, `'text'`."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, int):
        return f"{value:_}" if abs(value) >= 10_000 else str(value)
    if isinstance(value, float):
        return _number(value)
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(as_written(item) for item in value)}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name}: {as_written(item)}" for name, item in value.items()) + "}"
    return repr(value)


def _number(value: float) -> str:
    if value == 0 or 1e-3 <= abs(value) < 1e6:
        return repr(value)
    sign, digits, exponent = Decimal(repr(value)).normalize().as_tuple()
    first, rest = digits[0], "".join(map(str, digits[1:]))
    power = int(exponent) + len(digits) - 1
    return f"{'-' if sign else ''}{first}{'.' + rest if rest else ''}e{power}"


def _values(prefix: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[Reason]:
    for name in sorted({*before, *after}):
        old, new, label = before.get(name), after.get(name), f"{prefix}.{name}"
        if name not in after:
            yield Reason("parameter", f"{label} {as_written(old)} is gone", label, old)
        elif name not in before:
            yield Reason("parameter", f"{label} {as_written(new)} is new", label, None, new)
        elif isinstance(old, dict) and isinstance(new, dict):
            yield from _values(label, old, new)
        elif old != new:
            yield Reason("parameter", f"{label} {as_written(old)} → {as_written(new)}", label, old, new)


def _inputs(
    before: Mapping[str, list[str]], after: Mapping[str, list[str | None]], origins: Mapping[str, Sequence[str]]
) -> Iterator[Reason]:
    for name in sorted({*before, *after}):
        old, new = before.get(name), after.get(name)
        if new is None:
            yield Reason("input", f"input {name} is gone", name, old)
        elif old is None:
            yield Reason("input", f"input {name} ({', '.join(origins[name])}) is new", name, None, new)
        elif len(old) != len(new):
            yield Reason("input", f"input {name}: {len(old)} → {len(new)} artifacts", name, old, new)
        else:
            for one, other, origin in zip(old, new, origins[name], strict=True):
                if other is not None and one != other:
                    text = f"input {name} {_short(one)} → {_short(other)} (made by {origin})"
                    yield Reason("input", text, name, one, other)


def _sources(before: Mapping[str, str], after: Mapping[str, str]) -> Iterator[Reason]:
    for name in sorted({*before, *after}):
        old, new = before.get(name), after.get(name)
        if old != new:
            yield Reason("source", f"source {name} {_short(old)} → {_short(new)}", name, old, new)


def _short(digest: str | None) -> str:
    if digest is None:
        return "none"
    return f"{digest[:SHORT]}…" if is_digest(digest) else digest
