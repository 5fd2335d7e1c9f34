"""The store: a directory, or any fsspec URL.

    artifacts/<method>/<key>/manifest.json     what it is; present means complete
    artifacts/<method>/<key>/<output>/…        the files
    runs/<run>/                                journal and logs of each run
    scratch/<key>/                             a stage's own, survives retries, removed once its result is published
    last/<pipeline>/<stage>.json               the key a stage had last, so that a change can be explained

On a local disk publishing is one rename of a complete directory. Elsewhere the files go up first and the manifest last.
Remote artifacts are read through a local copy.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipelines.store.contents import StampedDigests, damage, describe, write_atomically
from pipelines.store.manifest import Manifest, OutputRecord
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


class Store:
    """A store on a local (or shared) disk."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        try:
            self.root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            message = f"cannot make the store {self.root}: {error.strerror}"
            raise UserError(message, fix="choose another place with --store") from None
        self._sources: StampedDigests | None = None

    @property
    def location(self) -> str:
        """What `open_store` takes to open this store."""
        return str(self.root)

    @property
    def sources(self) -> StampedDigests:
        """Digests of files outside the store that stages read."""
        if self._sources is None:
            self._sources = StampedDigests(self.root / "cache" / "sources.json")
        return self._sources

    def directory(self, method: str, key: str) -> Path:
        """Where the artifact with this key is, or would be."""
        return self.root / "artifacts" / method.replace(":", "-") / key[:KEY_LENGTH]

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

    def workspace(self, key: str) -> Path:
        """A fresh directory for one attempt's outputs, on the same disk as the artifacts."""
        path = self.root / "work" / f"{key[:KEY_LENGTH]}-{uuid.uuid4().hex[:8]}"
        path.mkdir(parents=True)
        return path

    def clear_work(self) -> None:
        """Remove what runs that died left half made. Call it only while holding the store."""
        shutil.rmtree(self.root / "work", ignore_errors=True)

    def scratch(self, key: str) -> Path:
        """The directory that survives retries and restarts of this key."""
        path = self.root / "scratch" / key[:KEY_LENGTH]
        path.mkdir(parents=True, exist_ok=True)
        return path

    def drop_scratch(self, key: str) -> None:
        """Remove the scratch of a key whose result is published."""
        shutil.rmtree(self.root / "scratch" / key[:KEY_LENGTH], ignore_errors=True)

    def publish(self, draft: Manifest, outputs: Mapping[str, Output], workspace: Path) -> Manifest:
        """Make the outputs in `workspace` visible under the draft's key, in one step.

        When the key was published meanwhile, that result is kept and returned. Raises UserError for an output that the
        stage declared and did not write.
        """
        digests = StampedDigests(workspace / "stamps.json")
        records = {name: _record(workspace / name, name, output, digests) for name, output in outputs.items()}
        manifest = replace(draft, outputs=records)
        digests.save()
        write_atomically(workspace / "manifest.json", manifest.to_json().encode())
        return self._reveal(manifest, workspace)

    def _reveal(self, manifest: Manifest, workspace: Path) -> Manifest:
        target = self.directory(manifest.method, manifest.key)
        target.parent.mkdir(parents=True, exist_ok=True)
        earlier = read_manifest(target, manifest.key)
        if earlier and not self.damage(earlier):
            shutil.rmtree(workspace)
            return earlier
        if target.exists():
            self._set_aside(target)
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

    def _set_aside(self, target: Path) -> None:
        """Keep what was damaged, out of the way: nothing that a person may have changed by hand is deleted."""
        aside = self.root / "damaged" / f"{target.parent.name}-{target.name}-{uuid.uuid4().hex[:6]}"
        aside.parent.mkdir(parents=True, exist_ok=True)
        target.rename(aside)

    def discard(self, workspace: Path) -> None:
        """Remove an attempt's outputs that will not be published."""
        shutil.rmtree(workspace, ignore_errors=True)

    def run_directory(self, run: str) -> Path:
        """The local directory with the run's journal and logs."""
        return self.root / "runs" / run

    def remember_last(self, pipeline: str, stage: str, manifest: Manifest) -> None:
        """Note the key a stage of a pipeline had last."""
        file = self.root / "last" / pipeline / f"{stage}.json"
        entry = json.dumps({"key": manifest.key, "method": manifest.method}).encode()
        if not (file.exists() and file.read_bytes() == entry):
            write_atomically(file, entry)

    def last(self, pipeline: str, stage: str) -> Manifest | None:
        """The manifest a stage of a pipeline had last, if it is still there."""
        try:
            entry = json.loads((self.root / "last" / pipeline / f"{stage}.json").read_bytes())
            return self.find(entry["method"], entry["key"])
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None

    @contextlib.contextmanager
    def lock(self, about: Mapping[str, Any]) -> Iterator[None]:
        """Hold the store for one run. Raises UserError naming the holder. The kernel frees it when a holder dies."""
        import fcntl

        file = (self.root / "run.lock").open("a+", encoding="utf-8")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise _busy(self.location, file.read()) from None
        with file:
            file.truncate(0)
            file.write(json.dumps(dict(about)))
            file.flush()
            yield


def read_manifest(directory: Path, key: str) -> Manifest | None:
    """The manifest in `directory` when it is whole and belongs to `key`."""
    try:
        manifest = Manifest.from_json((directory / "manifest.json").read_bytes())
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    return manifest if manifest.key == key else None


def _record(directory: Path, name: str, output: Output, digests: StampedDigests) -> OutputRecord:
    files = describe(directory, digests, name) if directory.is_dir() else ()
    if not files:
        raise UserError(f"the stage wrote nothing for its output {name!r}", fix="write it below context.output(name)")
    schema = output.schema
    if output.kind.kind == "dataset" and schema is None:
        schema = json.loads((directory / "dataset.json").read_bytes()).get("schema")
    return OutputRecord.of(output.kind.kind, schema, files)


def _busy(location: str, holder: str) -> UserError:
    try:
        about = json.loads(holder)
    except ValueError:
        about = {}
    who = ", ".join(f"{key} {value}" for key, value in about.items()) or "another run"
    fix = "wait for it, stop it with Ctrl-C where it runs, or use another place with --store"
    return UserError(f"the store {location} is in use by {who}", fix=fix)


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
