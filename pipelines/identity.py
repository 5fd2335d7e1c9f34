"""What a stage's result *is*: the identity that makes its key, and how two identities differ."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from pipelines.canonical import digest
from pipelines.fingerprint import fingerprint
from pipelines.spec.pipeline import StageSpec
from pipelines.store import Manifest, Store
from pipelines.store.contents import tree_digest
from stages import registry
from stages.errors import UserError

Digests = Mapping[tuple[str, str], str]
"""Content digest of each output known so far, by (stage, output)."""


@cache
def code_of(uses: str) -> dict[str, str]:
    """Digest of every definition the method reaches."""
    return fingerprint(registry.target(uses))


@cache
def code_digest(uses: str) -> str:
    """The code fingerprint as one digest."""
    return digest(code_of(uses))


def identity_of(spec: StageSpec, digests: Digests, store: Store) -> dict[str, Any]:
    """The identity of `spec` when all its inputs are known. Raises UserError for a missing source."""
    return {
        "method": spec.uses,
        "code": code_digest(spec.uses),
        "params": spec.params.identity(),
        "inputs": {
            name: [digests[reference.stage, reference.output] for reference in references]
            for name, references in spec.inputs.items()
        },
        "sources": source_digests(spec, store),
        "seed": spec.seed,
    }


def source_digests(spec: StageSpec, store: Store) -> dict[str, str]:
    """Content digest, or pinned version, of everything the parameters point at outside the store."""
    found = {}
    for name, source in spec.make().sources().items():
        if isinstance(source, Path) and not source.exists():
            raise UserError(f"{name} {source} does not exist", fix="check the path")
        found[name] = tree_digest(source, store.sources) if isinstance(source, Path) else source
    return found


def key_of(identity: Mapping[str, Any]) -> str:
    """The key: SHA-256 of the canonical JSON of the identity."""
    return digest(identity)


def differences(old: Manifest, identity: Mapping[str, Any], code: Mapping[str, str]) -> list[str]:
    """What changed since `old`, field by field, as people read it."""
    before = old.identity
    changes = []
    if before.get("method") != identity["method"]:
        changes.append(f"uses {before.get('method')} → {identity['method']}")
    changes.extend(_changed("params.", before.get("params", {}), identity["params"], repr))
    changes.extend(_changed("input ", before.get("inputs", {}), identity["inputs"], _short))
    changes.extend(_changed("source ", before.get("sources", {}), identity["sources"], lambda text: str(text)[:12]))
    if before.get("seed") != identity["seed"]:
        changes.append(f"seed {before.get('seed')} → {identity['seed']}")
    if before.get("code") != identity["code"]:
        changes.extend(_code_changes(old.code, code))
    return changes


def _changed(label: str, before: Mapping[str, Any], after: Mapping[str, Any], show: Any) -> list[str]:
    changes = []
    for name in sorted({*before, *after}):
        if name not in after:
            changes.append(f"{label}{name} removed")
        elif name not in before:
            changes.append(f"{label}{name} = {show(after[name])} is new")
        elif before[name] != after[name]:
            changes.append(f"{label}{name} {show(before[name])} → {show(after[name])}")
    return changes


def _short(digests: list[str]) -> str:
    return " ".join(f"{text[:8]}…" for text in digests)


def _code_changes(before: Mapping[str, str], after: Mapping[str, str]) -> list[str]:
    changes = []
    for definition in sorted({*before, *after}):
        module, _, name = definition.partition(":")
        what = "" if name.startswith("(") else f" {name}"
        verb = (
            "changed"
            if definition in before and definition in after
            else "is new"
            if definition in after
            else "is gone"
        )
        if before.get(definition) != after.get(definition):
            changes.append(f"code: {module.replace('.', '/')}.py{what} {verb}")
    return changes
