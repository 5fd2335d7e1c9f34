"""What a stage's result *is*: the identity that makes its key."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from pipelines.planning.canonical import digest
from pipelines.planning.fingerprint import fingerprint
from pipelines.spec.pipeline import StageSpec
from pipelines.store import OutputRecord, Store
from pipelines.store.contents import tree_digest
from stages import registry
from stages.errors import UserError

Known = Mapping[tuple[str, str], OutputRecord]
"""Each output known so far, by (stage, output)."""


@cache
def code_of(uses: str, grafts: tuple[str, ...] = ()) -> dict[str, str]:
    """Digest of every definition that the method reaches, and that loading models with these `grafts` does."""
    return {name: found for target in (*grafts, registry.target(uses)) for name, found in fingerprint(target).items()}


@cache
def code_digest(uses: str, grafts: tuple[str, ...] = ()) -> str:
    """The code fingerprint as one digest."""
    return digest(code_of(uses, grafts))


def identity_of(spec: StageSpec, known: Known, store: Store) -> dict[str, Any]:
    """The identity of `spec` when all its inputs are known. Raises UserError for a missing source."""
    read = [known[reference.stage, reference.output] for references in spec.inputs.values() for reference in references]
    grafts = tuple(sorted({target for record in read for target in record.code}))
    return {**settled(spec, grafts), "inputs": digest_of_inputs(spec, known), "sources": source_digests(spec, store)}


def settled(spec: StageSpec, grafts: tuple[str, ...] = ()) -> dict[str, Any]:
    """The part of the identity that is known before any stage has run, but for the `grafts` of the models it reads."""
    return {
        "method": spec.uses,
        "code": code_digest(spec.uses, grafts),
        "params": spec.params.identity(),
        "seed": spec.seed,
        **({"grafts": list(grafts)} if grafts else {}),
    }


def grafts_in(identity: Mapping[str, Any]) -> tuple[str, ...]:
    """The grafts that an identity names."""
    return tuple(identity.get("grafts", ()))


def digest_of_inputs(spec: StageSpec, known: Known) -> dict[str, list[str | None]]:
    """The content digests of each input, in order; None for one that is not known yet."""
    return {
        name: [
            record.digest if (record := known.get((reference.stage, reference.output))) else None
            for reference in references
        ]
        for name, references in spec.inputs.items()
    }


def source_digests(spec: StageSpec, store: Store) -> dict[str, str]:
    """Content digest, or pinned version, of everything the parameters point at outside the store."""
    found: dict[str, str] = {}
    name = "its sources"
    try:
        for name, source in spec.make().sources().items():
            if isinstance(source, Path) and not source.exists():
                raise UserError(f"{name} {source} does not exist", fix="check the path")
            found[name] = tree_digest(source, store.sources) if isinstance(source, Path) else source
    except OSError as error:
        message, fix = f"cannot ask for {name}: {error}", "check the name and the network"
        if error.filename:
            message, fix = f"cannot read {error.filename}: {error.strerror}", "check the path, and that you may read it"
        raise UserError(message, fix=fix) from None
    return found


def key_of(identity: Mapping[str, Any]) -> str:
    """The key: SHA-256 of the canonical JSON of the identity."""
    return digest(identity)
