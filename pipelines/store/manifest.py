"""The manifest beside every artifact: what it is, what made it, and the digest of each of its files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from pipelines.planning.canonical import digest

VERSION: Final = 1


@dataclass(frozen=True)
class File:
    """One file of an output: path relative to the output's directory, size in bytes, SHA-256."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True)
class OutputRecord:
    """One output of a stage. Its digest covers paths, sizes and contents of its files, and nothing else."""

    kind: str
    schema: str | None
    digest: str
    size: int
    files: tuple[File, ...]
    code: tuple[str, ...] = ()
    """What of the project runs in whoever loads it, as `module:Class`: the grafts of a converted model."""

    @classmethod
    def of(cls, kind: str, schema: str | None, files: tuple[File, ...], code: tuple[str, ...] = ()) -> OutputRecord:
        """The record of these files."""
        content = [[file.path, file.size, file.sha256] for file in files]
        return cls(kind, schema, digest(content), sum(file.size for file in files), files, code)


@dataclass(frozen=True)
class Manifest:
    """What one execution of a stage left: identity (what it is), outputs, metrics, and evidence (how it came about)."""

    key: str
    method: str
    identity: Mapping[str, Any]
    """Parameters, inputs, sources, code and seed: the key is the digest of this."""
    code: Mapping[str, str]
    """Digest of every definition the method reaches, so that a change can be named."""
    outputs: Mapping[str, OutputRecord]
    metrics: Mapping[str, float] = field(default_factory=dict)
    evidence: Mapping[str, Any] = field(default_factory=dict)
    run: str = ""
    stage: str = ""
    place: str = ""
    """Directory below the artifact's own that holds the outputs: behind a URL each attempt has one, on a disk none."""

    def to_json(self) -> str:
        """The manifest as text."""
        return json.dumps({"version": VERSION, **asdict(self)}, indent=1, sort_keys=True) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> Manifest:
        """Read a manifest. Raises ValueError when it is not one of this version."""
        content = json.loads(text)
        if not isinstance(content, dict) or content.pop("version", None) != VERSION:
            raise ValueError(f"not a manifest of version {VERSION}")
        try:
            outputs = {name: _output(record) for name, record in content.pop("outputs").items()}
            content["code"] = _shared(content["code"])
            return cls(outputs=outputs, **content)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"not a manifest: {error}") from None


_CODE: Final[dict[tuple[tuple[str, str], ...], dict[str, str]]] = {}
"""Code maps by their content: the stages of a wide matrix share one method, and their manifests one map."""


def _shared(code: dict[str, str]) -> dict[str, str]:
    return _CODE.setdefault(tuple(code.items()), code)


def _output(record: dict[str, Any]) -> OutputRecord:
    files, code = tuple(File(**file) for file in record["files"]), tuple(record.get("code", ()))
    return OutputRecord(**{**record, "files": files, "code": code})
