"""Every artifact of a store by its content, with those whose bytes are gone: the ground that lineage is walked on.

A manifest names its inputs by content digest alone. Where several results have the same content, the one that the run
itself used is meant; without its journal, the newest that was there before.

Removing an artifact leaves its manifest as a record, `lineage/<method>/<key>.json`, so that lineage outlives the bytes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final

from pipelines.housekeeping.files import StoreFiles
from pipelines.housekeeping.runs import RunRecord, Short, read_runs, short
from pipelines.store import Manifest, OutputRecord, Store
from pipelines.store.store import KEY_LENGTH, parse_manifest
from stages import registry
from stages.errors import UserError

VERSION: Final = 1
KINDS: Final = ("model", "dataset", "report")
DECLARED: Final = ("source", "licence")
SIGNED: Final = ("who", "when", "reason")


@dataclass(frozen=True)
class Made:
    """One output of one result."""

    manifest: Manifest
    output: str

    @property
    def record(self) -> OutputRecord:
        """Kind, digest, size and files."""
        return self.manifest.outputs[self.output]

    @property
    def name(self) -> str:
        """`stage.output`."""
        return f"{self.manifest.stage}.{self.output}"


@dataclass
class Catalogue:
    """What a store holds, and what it once held."""

    store: Store
    files: StoreFiles
    manifests: dict[Short, Manifest]
    """Results that are there, by method and short key."""
    removed: dict[Short, Manifest] = field(default_factory=dict)
    """Results whose bytes were removed."""
    declared: dict[Short, Mapping[str, str]] = field(default_factory=dict)
    """What removed sources said of themselves: `source` and `licence`."""

    @classmethod
    def read(cls, store: Store) -> Catalogue:
        """Read every manifest and record of `store`."""
        store.pull_runs()
        files = StoreFiles(store)
        catalogue = cls(store, files, {})
        for data in files.read_all(files.glob("artifacts/*/*/manifest.json")).values():
            if manifest := parse_manifest(data):
                catalogue.manifests[short(manifest.method, manifest.key)] = manifest
        for data in files.read_all(files.glob("lineage/*/*.json")).values():
            catalogue._remember(data)
        return catalogue

    @cached_property
    def runs(self) -> dict[str, RunRecord]:
        """Every run by name, oldest first."""
        return read_runs(self.files, self.manifests.values())

    @cached_property
    def by_digest(self) -> dict[str, list[Made]]:
        """Every output by its content digest; those that are there before those that are gone."""
        found: dict[str, list[Made]] = {}
        for made in self.all_outputs():
            found.setdefault(made.record.digest, []).append(made)
        return found

    @cached_property
    def accepted(self) -> dict[str, Mapping[str, Any]]:
        """By key, that a result was kept though its code had changed: who said so, when and why; the newest record."""
        records = [_json(data) for data in self.files.read_all(self.files.glob("accepted/*/*.json")).values()]
        return {
            record["of"]: {name: record[name] for name in SIGNED if name in record}
            for record in sorted(records, key=lambda record: float(record.get("when") or 0.0))
            if record.get("of")
        }

    def all_outputs(self) -> Iterator[Made]:
        """Every output, of results that are there and of those that are gone."""
        for manifest in (*self.manifests.values(), *self.removed.values()):
            for name in manifest.outputs:
                yield Made(manifest, name)

    def gone(self, manifest: Manifest) -> bool:
        """Whether only the record is left."""
        return short(manifest.method, manifest.key) not in self.manifests

    def get(self, name: Short) -> Manifest | None:
        """The result of that name, there or gone."""
        return self.manifests.get(name) or self.removed.get(name)

    def maker(self, digest: str, reader: Manifest) -> Made | None:
        """Who made the content that `reader` read; None when nothing here did."""
        candidates = self.by_digest.get(digest, [])
        if len(candidates) < 2:
            return next(iter(candidates), None)
        run = self.runs.get(reader.run)
        used = set(run.results.values()) if run else set()
        mine = [made for made in candidates if short(made.manifest.method, made.manifest.key) in used]
        before = [made for made in candidates if began(made.manifest) <= began(reader)]
        return max(mine or before or candidates, key=lambda made: began(made.manifest))

    def main_output(self, manifest: Manifest) -> str:
        """The output that is meant when only the stage is named: the first its class declares."""
        try:
            declared = list(registry.find(manifest.method).outputs)
        except UserError:
            declared = []  # a method that cannot be imported here, or that has been renamed
        kinds = {name: KINDS.index(record.kind) for name, record in manifest.outputs.items() if record.kind in KINDS}
        order = [*declared, *sorted(manifest.outputs, key=lambda name: (kinds.get(name, len(KINDS)), name))]
        return next(name for name in order if name in manifest.outputs)

    def about(self, manifest: Manifest) -> Mapping[str, str]:
        """`source` and `licence` as the result of a source declares them; empty for other results."""
        if manifest.identity.get("inputs"):
            return {}
        name = short(manifest.method, manifest.key)
        if name not in self.declared:
            self.declared[name] = dict(self._declaration(manifest))
        return self.declared[name]

    def forget(self, manifest: Manifest, when: float) -> None:
        """Write the record of a result that is about to be removed; `when` in seconds since the epoch."""
        name = short(manifest.method, manifest.key)
        content = {
            "version": VERSION,
            "removed": round(when, 3),
            "declared": dict(self.about(manifest)),
            "manifest": json.loads(manifest.to_json()),
        }
        self.files.write(record_name(name), json.dumps(content, sort_keys=True).encode() + b"\n")
        self.removed[name] = manifest

    def _declaration(self, manifest: Manifest) -> Iterator[tuple[str, str]]:
        for output, record in manifest.outputs.items():
            file = {"report": "report.json", "dataset": "dataset.json"}.get(record.kind)
            parts = (directory_name(manifest), manifest.place, output, file)
            content = _json(self.files.read("/".join(filter(None, parts))) if file else None)
            details = content.get("details") if record.kind == "report" else content
            if isinstance(details, dict):
                yield from ((key, str(details[key])) for key in DECLARED if details.get(key))

    def _remember(self, data: bytes) -> None:
        content = _json(data)
        manifest = parse_manifest(json.dumps(content.get("manifest")).encode())
        if content.get("version") == VERSION and manifest is not None:
            name = short(manifest.method, manifest.key)
            if name not in self.manifests:
                self.removed[name] = manifest
                self.declared[name] = content.get("declared") or {}


def began(manifest: Manifest) -> float:
    """When the stage began, in seconds since the epoch."""
    return float(manifest.evidence.get("started") or 0.0)


def directory_name(manifest: Manifest) -> str:
    """Where a result lies in the store."""
    return f"artifacts/{manifest.method.replace(':', '-')}/{manifest.key[:KEY_LENGTH]}"


def record_name(name: Short) -> str:
    """Where the record of a removed result lies in the store."""
    return f"lineage/{name[0].replace(':', '-')}/{name[1]}.json"


def _json(data: bytes | None) -> dict[str, Any]:
    try:
        content = json.loads(data or b"{}")
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}
