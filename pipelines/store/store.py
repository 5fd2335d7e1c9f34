"""The store: a directory, or any fsspec URL.

    artifacts/<method>/<key>/manifest.json     what it is; present means complete
    artifacts/<method>/<key>/<output>/…        the files
    runs/<run>/                                journal and logs of each run
    leases/<key>/<token>                       who computes this key now
    scratch/<key>/<attempt>/                   a stage's own, survives retries, removed once its result is published
    work/<run>/                                what attempts are writing; nobody reads it
    last/<pipeline>/<stage>.json               the key a stage had last, so that a change can be explained
    damaged/, replaced/                        artifacts that were put aside
    accepted/, tags/, lineage/                 small records: accepted code, names, manifests of what `gc` removed
    cache/                                     what is remembered of files, and may be deleted

On a local disk publishing is one rename of a complete directory. Elsewhere the files go up first and the manifest last.
Remote artifacts are read through a local copy.

Several runs may use a store at once. What keeps them apart is the lease of a key and, whatever happens to leases, that
revealing a result is atomic and the first result stays.
"""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path

from pipelines import hints
from pipelines.store.contents import StampedDigests, damage, describe, write_atomically
from pipelines.store.datasets import column_problem, declared_schema
from pipelines.store.disk_lease import DiskLeases
from pipelines.store.holder import Holder
from pipelines.store.lease import Claim, Lease, Leases
from pipelines.store.manifest import Manifest, OutputRecord
from pipelines.store.runs import RunRecords
from stages.errors import UserError
from stages.stage import Output

KEY_LENGTH = 24
"""Hex digits of the key in a directory's name; the manifest holds all 64."""


def open_store(location: str) -> Store:
    """The store at a path or fsspec URL. Raises UserError when it cannot be used."""
    if "://" in location and not location.startswith("file://"):
        from pipelines.store.remote import RemoteStore

        return RemoteStore(location)
    return Store(Path(location.removeprefix("file://")))


class Store(RunRecords):
    """A store on a local (or shared) disk."""

    def __init__(self, root: Path) -> None:
        super().__init__(root.absolute())
        try:
            self.root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            message = f"cannot make the store {self.root}: {error.strerror}"
            raise UserError(message, fix="choose another place with --store") from None
        self.default = hints.default_store()
        """What a command takes that names no store, in the directory where this one was given."""
        self._sources: StampedDigests | None = None
        self._directories: dict[tuple[str, str], Path] = {}
        self.tell: Callable[[float, float, str], None] = lambda *_: None
        """Hears how far a transfer is: done, total, unit."""
        self.leases = Leases(DiskLeases(self.root / "leases"))

    @property
    def location(self) -> str:
        """What `open_store` takes to open this store."""
        return str(self.root)

    def command(self, text: str) -> str:
        """`regraft` with `text`, as a person types it, where this command was given, to mean this store."""
        return f"regraft {hints.naming(text, self.location, self.default)}"

    @property
    def sources(self) -> StampedDigests:
        """Digests of files outside the store that stages read."""
        if self._sources is None:
            self._sources = StampedDigests(self.root / "cache" / "sources.json")
        return self._sources

    def directory(self, method: str, key: str) -> Path:
        """Where the artifact with this key is, or would be."""
        place = (method, key)
        if place not in self._directories:  # asked several times a stage, and a Path costs as much as a small read
            self._directories[place] = Path(f"{self.root}/artifacts/{method.replace(':', '-')}/{key[:KEY_LENGTH]}")
        return self._directories[place]

    def find(self, method: str, key: str) -> Manifest | None:
        """The manifest of a published artifact, or None."""
        return read_manifest(self.directory(method, key), key)

    def uri(self, manifest: Manifest, output: str) -> str:
        """Where an output is, for people and for lineage."""
        return str(self.directory(manifest.method, manifest.key) / output)

    def damage(self, manifest: Manifest, *, read: bool = False) -> str | None:
        """What is wrong with a published artifact, or None. With `read`, every byte is read again."""
        directory = self.directory(manifest.method, manifest.key)
        digests = StampedDigests(directory / "stamps.json")
        if read:
            digests.known.clear()
        for name, output in manifest.outputs.items():
            problem = damage(directory / name, output.files, digests, name)
            if problem:
                return problem
        digests.save()
        return None

    def fetch(self, manifest: Manifest, output: str) -> Path:
        """A local directory with the output's files. Raises UserError when they are damaged."""
        problem = self.damage(manifest)
        if problem:
            message = f"the artifact of stage {manifest.stage!r} is damaged: {problem}"
            raise UserError(message, where=self.uri(manifest, output), fix="run the pipeline again: it is made anew")
        return self.directory(manifest.method, manifest.key) / output

    def snapshot(self, pipeline: str, stages: Iterable[str]) -> AbstractContextManager[None]:  # noqa: ARG002
        """While it is open, artifacts may be told as they were when first asked for: enough for a plan.

        What the `stages` (slugs) of `pipeline` had last is likely to be asked for. A disk is quick enough as it is.
        """
        return nullcontext()

    def manifests(self) -> Iterator[tuple[str, Manifest | None]]:
        """Where each artifact is, with its manifest; None for a manifest that cannot be read."""
        for file in sorted((self.root / "artifacts").glob("*/*/manifest.json")):
            yield str(file.parent), parse_manifest(file.read_bytes())

    def claim(self, key: str, holder: Holder) -> Claim:
        """A run's wish for the lease of `key`."""
        return Claim(self.leases, self.claim_key(key), holder)

    def clear_leases(self, run: str) -> None:
        """Remove what a dead `run` still holds although its result is there: it died between the two.

        Its other leases stay: they tell the run that takes over from whom.
        """
        for lease in self.leases.all():
            if lease.holder.run == run and self._is_published(lease.key):
                self.leases.release(lease)

    def _is_published(self, claim_key: str) -> bool:
        """Whether an artifact of any method has this key."""
        return any((self.root / "artifacts").glob(f"*/{claim_key}/manifest.json"))

    @staticmethod
    def claim_key(key: str) -> str:
        """The name of a key among the leases."""
        return key[:KEY_LENGTH]

    def workspace(self, key: str, run: str = "none") -> Path:
        """A fresh directory for one attempt's outputs, on the same disk as the artifacts."""
        path = self.root / "work" / run / f"{key[:KEY_LENGTH]}-{uuid.uuid4().hex[:8]}"
        path.mkdir(parents=True)
        return path

    def scratch(self, key: str, attempt: str = "attempt") -> Path:
        """The directory that survives retries and restarts of this key, from now on of the attempt named so alone.

        Taking it over is a rename: an earlier attempt that is still at work finds its directory gone.
        """
        parent = self.root / "scratch" / key[:KEY_LENGTH]
        parent.mkdir(parents=True, exist_ok=True)
        target = parent / attempt
        for earlier in sorted(parent.iterdir(), key=lambda path: path.stat().st_mtime, reverse=True):
            if earlier.name != attempt and not target.exists():
                earlier.rename(target)
            elif earlier.name != attempt:
                shutil.rmtree(earlier, ignore_errors=True)
        target.mkdir(exist_ok=True)
        return target

    def drop_scratch(self, key: str) -> None:
        """Remove the scratch of a key whose result is published."""
        shutil.rmtree(self.root / "scratch" / key[:KEY_LENGTH], ignore_errors=True)

    def publish(
        self,
        draft: Manifest,
        outputs: Mapping[str, Output],
        workspace: Path,
        lease: Lease | None = None,
        *,
        replacing: bool = False,
    ) -> Manifest:
        """Make the outputs in `workspace` visible under the draft's key, in one step.

        When the key was published meanwhile, that result is kept and returned; `replacing` puts it aside. Raises
        UserError for an output that is not what the stage declared, LeaseLostError when another run has taken over.
        """
        manifest = self._seal(draft, outputs, workspace)
        return self._reveal(manifest, workspace, lease, replacing=replacing)

    def _seal(self, draft: Manifest, outputs: Mapping[str, Output], workspace: Path) -> Manifest:
        """Write the manifest beside the outputs."""
        digests = StampedDigests(workspace / "stamps.json")
        records = {name: _record(workspace / name, name, output, digests) for name, output in outputs.items()}
        manifest = replace(draft, outputs=records)
        digests.save()
        write_atomically(workspace / "manifest.json", manifest.to_json().encode())
        return manifest

    def _reveal(self, manifest: Manifest, workspace: Path, lease: Lease | None, *, replacing: bool) -> Manifest:
        target = self.directory(manifest.method, manifest.key)
        target.parent.mkdir(parents=True, exist_ok=True)
        earlier = read_manifest(target, manifest.key)
        whole = earlier is not None and not Store.damage(self, earlier)
        if earlier and whole and not replacing:
            shutil.rmtree(workspace)
            return earlier
        if lease:
            self.leases.check(lease)
        if target.exists():
            self.set_aside(target, "replaced" if whole else "damaged")
        try:
            workspace.rename(target)
        except OSError:
            adopted = read_manifest(target, manifest.key)
            if adopted is None:
                raise
            shutil.rmtree(workspace)
            return adopted
        _sync_directory(target.parent)
        return manifest

    def set_aside_artifact(self, where: str) -> str:
        """Take the artifact in directory `where` out of the way; returns where it is now."""
        return str(self.set_aside(Path(where)))

    def set_aside(self, target: Path, folder: str = "damaged") -> Path:
        """Keep what was damaged, or is made anew, out of the way: nothing a person may have changed is deleted."""
        aside = self.root / folder / f"{target.parent.name}-{target.name}-{uuid.uuid4().hex[:6]}"
        aside.parent.mkdir(parents=True, exist_ok=True)
        target.rename(aside)
        return aside

    def discard(self, workspace: Path) -> None:
        """Remove an attempt's outputs that will not be published."""
        shutil.rmtree(workspace, ignore_errors=True)

    def remember_last(self, pipeline: str, stage: str, manifest: Manifest) -> None:
        """Note the key a stage of a pipeline had last."""
        file = Path(f"{self.root}/last/{pipeline}/{stage}.json")
        entry = json.dumps({"key": manifest.key, "method": manifest.method}).encode()
        with suppress(FileNotFoundError):
            if file.read_bytes() == entry:
                return
        write_atomically(file, entry, durable=False)

    def last(self, pipeline: str, stage: str) -> Manifest | None:
        """The manifest a stage of a pipeline had last, if it is still there."""
        place = self.last_place(pipeline, stage)
        return self.find(*place) if place else None

    def last_place(self, pipeline: str, stage: str) -> tuple[str, str] | None:
        """Method and key of what a stage of a pipeline had last, on this machine."""
        try:
            entry = json.loads((self.root / "last" / pipeline / f"{stage}.json").read_bytes())
            return entry["method"], entry["key"]
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None


def read_manifest(directory: Path, key: str) -> Manifest | None:
    """The manifest in `directory` when it is whole and belongs to `key`."""
    try:
        manifest = parse_manifest((directory / "manifest.json").read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    return manifest if manifest and manifest.key == key else None


def parse_manifest(data: bytes) -> Manifest | None:
    """The manifest in `data`, or None when it is not one."""
    try:
        return Manifest.from_json(data)
    except ValueError:
        return None


def _record(directory: Path, name: str, output: Output, digests: StampedDigests) -> OutputRecord:
    files = describe(directory, digests, name) if directory.is_dir() else ()
    if not files:
        raise UserError(f"the stage wrote nothing for its output {name!r}", fix="write it below context.output(name)")
    schema = output.schema
    if output.kind.kind == "dataset" and schema is None:
        schema = declared_schema(directory)
    if output.kind.kind == "dataset" and schema and (problem := column_problem(directory, schema)):
        raise UserError(f"output {name!r} is not the dataset it says: {problem}", fix="mend the stage that wrote it")
    code = grafts_of(directory) if output.kind.kind == "model" else ()
    return OutputRecord.of(output.kind.kind, schema, files, code)


def grafts_of(directory: Path) -> tuple[str, ...]:
    """The classes of the grafts of the model in `directory`, as `module:Class`; none for a standard model."""
    from stages.artifacts import Model

    names = {graft["name"] for graft in Model(directory).grafts} if (directory / "config.json").is_file() else ()
    if not names:
        return ()
    from grafts.registry import GRAFTS

    return tuple(sorted(GRAFTS[name] for name in names if name in GRAFTS))


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
