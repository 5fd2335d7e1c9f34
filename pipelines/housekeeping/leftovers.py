"""What runs leave in a store besides their results: scratch, unfinished work, cut-off uploads, what was set aside."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from pipelines.housekeeping.alive import Alive
from pipelines.housekeeping.catalogue import Catalogue, directory_name
from pipelines.housekeeping.files import size_of, walk
from pipelines.store import Manifest
from pipelines.store.store import KEY_LENGTH

Kind = Literal["artifact", "unfinished", "lease", "scratch", "work", "damaged", "replaced"]
ASIDE: Final[Mapping[Kind, str]] = {
    "damaged": "no longer matched its digests and was set aside",
    "replaced": "was made anew and set aside",
}

KEYED: Final[Mapping[str, int]] = {"artifacts": 2, "scratch": 1, "leases": 1}
"""Which part of a path in these folders is a key."""


@dataclass(frozen=True)
class Item:
    """Something in the store, and what becomes of it."""

    kind: Kind
    path: str
    """Its directory in the store."""
    name: str
    """What people call it."""
    bytes: int
    last_run: str
    """The run that used it last; "" when nobody knows."""
    last_used: float
    """When, in seconds since the epoch; 0 when nobody knows."""
    goes: bool
    why: str
    manifest: Manifest | None = None
    """Of an artifact."""

    @property
    def key(self) -> str:
        """The key it belongs to, as far as its path tells; "" when it belongs to none."""
        parts = self.path.split("/")
        return parts[KEYED[parts[0]]] if parts[0] in KEYED else ""


def unfinished(catalogue: Catalogue, alive: Alive) -> Iterator[Item]:
    """Directories of artifacts without a manifest, and uploads that no manifest names: something was cut off."""
    files = catalogue.files
    complete = {name.rpartition("/")[0] for name in files.glob("artifacts/*/*/manifest.json")}
    places = {path.relative_to(files.root).as_posix() for path in (files.root / "artifacts").glob("*/*")}
    places |= set(files.glob("artifacts/*/*")) if files.is_remote else set()
    known = {directory_name(manifest): manifest for manifest in catalogue.manifests.values()}
    stray = {place for place in files.glob("artifacts/*/*/*") if _is_stray(place, known)} if files.is_remote else set()
    for place in sorted((places - set(known)) | stray):
        _, method, key = place.split("/")[:3]
        if place in complete:
            verify = catalogue.store.command("verify")
            why, goes = f"its manifest cannot be read: of another version, or damaged ({verify})", False
        else:
            why, goes = _unless_held(alive, key, "no manifest names it: an upload or a removal was cut off")
        yield Item("unfinished", place, f"{method} {key[:8]}", files.tree_bytes(place), "", 0.0, goes, why)


def _is_stray(place: str, known: Mapping[str, Manifest]) -> bool:
    """Whether a place in the directory of an artifact behind a URL is not the one that its manifest names."""
    directory, _, name = place.rpartition("/")
    return directory in known and name not in (known[directory].place, "manifest.json")


def leftovers(catalogue: Catalogue, alive: Alive, kept_runs: Container[str]) -> Iterator[Item]:
    """What is left of attempts; `kept_runs` may go on from theirs."""
    yield from _leases(catalogue, alive)
    root = catalogue.files.root
    pending = {
        key[:KEY_LENGTH]: (stage, record) for record in catalogue.runs.values() for stage, key in record.pending.items()
    }
    for path in sorted((root / "scratch").glob("*")):
        stage, record = pending.get(path.name[:KEY_LENGTH], ("", None))
        name = f"{stage} {path.name[:8]}" if stage else path.name
        why, goes = _unless_held(alive, path.name, "left by a run that ended")
        if goes and record and record.name in kept_runs:
            why, goes = f"run {record.name} can go on from it", False
        yield Item(
            "scratch",
            f"scratch/{path.name}",
            name,
            size_of(path),
            record.name if record else "",
            _changed(path),
            goes,
            why,
        )
    for path in sorted((root / "work").glob("*")):
        lives = path.name in alive.runs
        why = f"run {path.name} is at work" if lives else "left by a run that ended"
        yield Item("work", f"work/{path.name}", path.name, size_of(path), path.name, _changed(path), not lives, why)
    for kind, why in ASIDE.items():
        for path in sorted((root / kind).glob("*")):
            yield Item(kind, f"{kind}/{path.name}", path.name, size_of(path), "", _changed(path), True, why)


def _leases(catalogue: Catalogue, alive: Alive) -> Iterator[Item]:
    """Leases of runs that are over: nobody waits for them, and the next run that wants the key takes it anyway."""
    for lease in catalogue.store.leases.all():
        if not alive.holder(lease.key):
            name, run = f"{lease.holder.stage} {lease.key[:8]}".strip(), lease.holder.run
            yield Item("lease", f"leases/{lease.key}", name, 0, run, 0.0, True, f"left by run {run}, which is over")


def _unless_held(alive: Alive, key: str, why: str) -> tuple[str, bool]:
    holder = alive.holder(key)
    return (f"held by {holder}", False) if holder else (why, True)


def _changed(path: Path) -> float:
    """When anything at or below `path` was written last, in seconds since the epoch."""
    return max((status.st_mtime for status in walk(path)), default=0.0)
