"""What a stage's result *is*: the identity that makes its key."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from pipelines.canonical import digest
from pipelines.fingerprint import fingerprint
from pipelines.spec.pipeline import StageSpec
from pipelines.store import Store
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
    return {**settled(spec), "inputs": digest_of_inputs(spec, digests), "sources": source_digests(spec, store)}


def settled(spec: StageSpec) -> dict[str, Any]:
    """The part of the identity that is known before any stage has run."""
    return {
        "method": spec.uses,
        "code": code_digest(spec.uses),
        "params": spec.params.identity(),
        "seed": spec.seed,
    }


def digest_of_inputs(spec: StageSpec, digests: Digests) -> dict[str, list[str | None]]:
    """The content digests of each input, in order; None for one that is not known yet."""
    return {
        name: [digests.get((reference.stage, reference.output)) for reference in references]
        for name, references in spec.inputs.items()
    }


def source_digests(spec: StageSpec, store: Store) -> dict[str, str]:
    """Content digest, or pinned version, of everything the parameters point at outside the store."""
    found = {}
    try:
        for name, source in spec.make().sources().items():
            if isinstance(source, Path) and not source.exists():
                raise UserError(f"{name} {source} does not exist", fix="check the path")
            found[name] = tree_digest(source, store.sources) if isinstance(source, Path) else source
    except OSError as error:
        message = f"cannot read {error.filename}: {error.strerror}"
        raise UserError(message, fix="check the path, and that you may read it") from None
    return found


def key_of(identity: Mapping[str, Any]) -> str:
    """The key: SHA-256 of the canonical JSON of the identity."""
    return digest(identity)
