"""A store behind an fsspec URL (s3://, gs://, memory://…), worked on through a local copy.

The files of an attempt go up first, into a place of their own, and the manifest that names the place last, by a
conditional create: a manifest that can be read means a complete artifact, and two runs can never mix their files.
Scratch stays on the machine. Journals and logs go up while a run goes on (see `uplink`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import fsspec

from pipelines.causes import is_disk_full
from pipelines.store.contents import StampedDigests, damage, list_files, sha256_file
from pipelines.store.glance import Glances
from pipelines.store.lease import Lease, Leases, UnreachableError
from pipelines.store.manifest import Manifest, OutputRecord
from pipelines.store.remote_lease import RemoteLeases, create, remove
from pipelines.store.store import Store, parse_manifest
from pipelines.store.transfer import Transfer, is_object_store
from pipelines.store.uplink import JOURNAL_FILES, Downlink, Uplink
from stages.errors import UserError
from stages.stage import Output


class RemoteStore(Store):
    """The store at `location`; its local copy is below `REGRAFT_CACHE` (default `~/.cache/regraft`)."""

    def __init__(self, location: str) -> None:
        cache = Path(os.environ.get("REGRAFT_CACHE", Path.home() / ".cache" / "regraft"))
        super().__init__(cache / "stores" / hashlib.sha256(location.encode()).hexdigest()[:16])
        self._location = location.rstrip("/")
        with self.reaching():
            self.remote, self.base = fsspec.core.url_to_fs(self._location, use_listings_cache=False)
            self._open_base()
        self.leases = Leases(RemoteLeases(self.remote, f"{self.base}/leases", self.reaching))
        self._glances: Glances | None = None
        self._runs = Downlink(self.remote, f"{self.base}/runs", self.root / "runs")

    @property
    def location(self) -> str:
        """The URL."""
        return self._location

    def uri(self, manifest: Manifest, output: str) -> str:
        """The remote address of an output."""
        return f"{self._location}/{self._outputs(manifest)}/{output}"

    def find(self, method: str, key: str) -> Manifest | None:
        """The remote manifest."""
        with self.reaching():
            try:
                data = self._manifest(self._place(method, key))
            except FileNotFoundError:
                return None
        manifest = parse_manifest(data) if data is not None else None
        return manifest if manifest and manifest.key == key else None

    @contextlib.contextmanager
    def snapshot(self, pipeline: str, stages: Iterable[str]) -> Iterator[None]:
        """While it is open, each artifact is looked at once; what the stages had last, all at the same time."""
        self._glances = Glances(self.remote, self.base, self.root / "cache" / "manifests")
        try:
            last = [self.last_place(pipeline, stage) for stage in stages]
            self._glances.look_ahead((self._place(*place) for place in last if place), self.reaching)
            yield
        finally:
            self._glances = None

    def manifests(self) -> Iterator[tuple[str, Manifest | None]]:
        """Where each artifact is, with its manifest."""
        with self.reaching():
            addresses = sorted(map(str, self.remote.glob(f"{self.base}/artifacts/*/*/manifest.json")))
        for address in addresses:
            with contextlib.suppress(FileNotFoundError):  # removed since it was listed
                with self.reaching():
                    data = self.remote.cat_file(address)
                yield address.rpartition("/")[0], parse_manifest(data)

    def damage(self, manifest: Manifest, *, read: bool = False) -> str | None:
        """What is wrong with the remote files: missing or of another size; with `read`, of another content."""
        with self.reaching():
            return self._problem(manifest, read=read)

    def _problem(self, manifest: Manifest, *, read: bool) -> str | None:
        below = f"{self.base}/{self._outputs(manifest)}"
        found = self._sizes(manifest)
        for name, output in manifest.outputs.items():
            for file in output.files:
                address = f"{below}/{name}/{file.path}"
                size = found.get(f"{name}/{file.path}")
                if size is None:
                    return f"{name}/{file.path} is missing"
                if size != file.size:
                    return f"{name}/{file.path} has {size:,} bytes, {file.size:,} were published"
                if read and _remote_sha256(self.remote, address) != file.sha256:
                    return f"{name}/{file.path} changed: sha256 differs from {file.sha256[:12]}…"
        return None

    def fetch(self, manifest: Manifest, output: str) -> Path:
        """Download the output unless the local copy has it whole. Raises UserError when it is damaged."""
        local = self.directory(manifest.method, manifest.key)
        record = manifest.outputs[output]
        digests = StampedDigests(local / "stamps.json")
        if damage(local / output, record.files, digests, output):
            self._download(manifest, output, record, local / output)
            damage(local / output, record.files, digests, output)  # remembers the digests
        digests.save()
        return local / output

    def publish(
        self,
        draft: Manifest,
        outputs: Mapping[str, Output],
        workspace: Path,
        lease: Lease | None = None,
        *,
        replacing: bool = False,
    ) -> Manifest:
        """Upload the files, then the manifest; what was made becomes the local copy."""
        manifest = self._seal(dataclasses.replace(draft, place=uuid.uuid4().hex[:12]), outputs, workspace)
        earlier = self._whole(manifest)
        if earlier and not replacing:
            self.discard(workspace)
            return earlier
        try:
            self._upload(manifest, workspace)
            published = self._reveal_remotely(manifest, lease, replacing=replacing)
        except BaseException:
            self._remove_place(manifest)
            raise
        if published.place != manifest.place:
            self._remove_place(manifest)
            self.discard(workspace)
            return published
        self._settle(workspace, self.directory(manifest.method, manifest.key))
        return manifest

    def _is_published(self, claim_key: str) -> bool:
        with self.reaching():
            return bool(self.remote.glob(f"{self.base}/artifacts/*/{claim_key}/manifest.json"))

    def set_aside_artifact(self, where: str) -> str:
        """Take an artifact away from where it is found; its files stay. Returns where the manifest is now."""
        address = f"{where}/manifest.json"
        method, key = where.split("/")[-2:]
        aside = f"{self.base}/damaged/{method}-{key}-{uuid.uuid4().hex[:6]}.json"
        with self.reaching():
            with contextlib.suppress(FileNotFoundError):
                self.remote.pipe_file(aside, self.remote.cat_file(address))
            remove(self.remote, address)
        return aside

    def beat_run(self, run: str) -> None:
        """The heartbeat of a run's mark: it is written again."""
        super().beat_run(run)
        with contextlib.suppress(FileNotFoundError):
            mark = (self.run_directory(run) / "open").read_bytes()
            self.remote.pipe_file(f"{self.base}/runs/{run}/open", mark)

    def death_of(self, run: str) -> str | None:
        """As on a disk; a run of which this machine only does work lives while its mark is in the bucket."""
        reason = super().death_of(run)
        is_known = reason is not None or (self.run_directory(run) / "journal.jsonl").exists()
        if is_known:
            return reason
        with self.reaching():
            return "" if self.remote.exists(f"{self.base}/runs/{run}/open") else None

    def may_close(self, run: str) -> bool:
        """Only runs of this machine: what is here of others is a copy."""
        return self._runs.is_ours(self.run_directory(run))

    def sharing(self, run: str, log: str = "") -> AbstractContextManager[None]:
        """While it is open, the run's records, or its `log`, go up."""
        return Uplink(self.remote, f"{self.base}/runs/{run}", self.run_directory(run), log).following()

    @contextlib.contextmanager
    def reaching(self) -> Iterator[None]:
        """Turn what goes wrong on the way to the store into a message. Raises UnreachableError."""
        try:
            yield
        except (UserError, FileNotFoundError):
            raise
        except (ImportError, ValueError) as error:
            fix = "install the fsspec backend of this scheme, for example pip install 'regraft[s3]'"
            raise UserError(f"cannot open the store {self._location}: {error}", fix=fix) from None
        # Each backend has its own errors for a network, a name or a key that is wrong.
        except Exception as error:
            if is_disk_full(error):
                raise  # of this machine
            fix = "check the address, the network and the credentials of the store"
            raise UnreachableError(f"cannot reach the store {self._location}: {error}", fix=fix) from None

    def pull_runs(self) -> None:
        """Bring the journals of runs on other machines here."""
        with self.reaching():
            self._runs.pull(names=JOURNAL_FILES)

    def pull_run(self, run: str) -> None:
        """Bring everything of one run here."""
        with self.reaching():
            self._runs.pull(run)

    def _open_base(self) -> None:
        """Make the base, or see that its bucket exists: a bucket is made by its owner, not by a slip of the pen."""
        if not is_object_store(self.remote):
            self.remote.makedirs(self.base, exist_ok=True)
            return
        bucket = self.base.lstrip("/").split("/")[0]
        if "memory" in self.remote.protocol or self.remote.exists(bucket):
            return
        with contextlib.suppress(FileNotFoundError):
            self.remote.ls(bucket)  # says why, when it is not that
        raise UserError(
            f"there is no bucket {bucket!r} for the store {self._location}", fix="create it, or mend the URL"
        )

    def _manifest(self, place: str) -> bytes | None:
        """The manifest in directory `place`, as it is now, or as the snapshot has it."""
        if self._glances:
            return self._glances.at(place).manifest
        return self.remote.cat_file(f"{self.base}/{place}/manifest.json")

    def _sizes(self, manifest: Manifest) -> dict[str, int]:
        """Bytes of each remote file of an artifact, by output and path."""
        if self._glances:
            within = f"{manifest.place}/" if manifest.place else ""
            seen = self._glances.at(self._relative(manifest)).sizes
            return {name.removeprefix(within): size for name, size in seen.items() if name.startswith(within)}
        below = f"{self.base}/{self._outputs(manifest)}"
        found = {str(name).lstrip("/"): about["size"] for name, about in self.remote.find(below, detail=True).items()}
        return {name.removeprefix(f"{below.lstrip('/')}/"): size for name, size in found.items()}

    def _whole(self, manifest: Manifest) -> Manifest | None:
        """The published artifact of the same key, if it is whole."""
        earlier = self.find(manifest.method, manifest.key)
        return earlier if earlier and not self.damage(earlier) else None

    def _upload(self, manifest: Manifest, workspace: Path) -> None:
        target = f"{self.base}/{self._outputs(manifest)}"
        total = sum(output.size for output in manifest.outputs.values())
        files = [
            (path, f"{target}/{name}/{file}")
            for name in manifest.outputs
            for file, path in list_files(workspace / name)
        ]
        Transfer(self.remote, self.tell, "uploaded", total).upload(files)

    def _reveal_remotely(self, manifest: Manifest, lease: Lease | None, *, replacing: bool) -> Manifest:
        address = f"{self.base}/{self._relative(manifest)}/manifest.json"
        earlier = self._whole(manifest)
        if earlier and not replacing:
            return earlier
        if lease:
            self.leases.check(lease)
        if replacing or self.remote.exists(address):
            self.set_aside_artifact(address.removesuffix("/manifest.json"))
        if create(self.remote, address, manifest.to_json().encode()):
            return manifest
        adopted = self.find(manifest.method, manifest.key)
        if adopted is None:
            raise UserError(f"the manifest {address} cannot be read", fix="remove it and run again")
        return adopted

    def _download(self, manifest: Manifest, output: str, record: OutputRecord, target: Path) -> None:
        draft = target.parent / f".download-{uuid.uuid4().hex[:8]}" / output
        below = f"{self.base}/{self._outputs(manifest)}/{output}"
        try:
            draft.mkdir(parents=True)
            with self.reaching():
                Transfer(self.remote, self.tell, "downloaded", record.size).download(
                    (f"{below}/{file.path}", draft / file.path) for file in record.files
                )
            for file in record.files:
                if sha256_file(draft / file.path) != file.sha256:
                    raise self._damaged(manifest, output, f"{file.path} changed: not {file.sha256[:12]}…")
            self._settle(draft, target)
        except FileNotFoundError as error:
            raise self._damaged(manifest, output, f"missing: {error}") from None
        finally:
            shutil.rmtree(draft.parent, ignore_errors=True)

    def _settle(self, draft: Path, target: Path) -> None:
        """Put a whole copy in its place; another process of this machine may do the same at the same time."""
        target.parent.mkdir(parents=True, exist_ok=True)
        old = draft.with_name(f"{draft.name}-old")
        with contextlib.suppress(FileNotFoundError):
            target.rename(old)
        try:
            draft.rename(target)
        except OSError:
            if not target.is_dir():
                raise
            shutil.rmtree(draft)  # the other was faster
        shutil.rmtree(old, ignore_errors=True)

    def _damaged(self, manifest: Manifest, output: str, problem: str) -> UserError:
        message = f"the artifact of stage {manifest.stage!r} is damaged: {problem}"
        fix = f"{self.command('verify --repair')}, then run again"
        return UserError(message, where=self.uri(manifest, output), fix=fix)

    def _remove_place(self, manifest: Manifest) -> None:
        """Take back an upload that nobody can see; if that fails too, it stays unseen.

        The store may have revealed it although its answer was lost: then it stays.
        """
        with contextlib.suppress(Exception):
            found = self.find(manifest.method, manifest.key)
            if found is None or found.place != manifest.place:
                self.remote.rm(f"{self.base}/{self._outputs(manifest)}", recursive=True)

    def _relative(self, manifest: Manifest) -> str:
        return self._place(manifest.method, manifest.key)

    def _place(self, method: str, key: str) -> str:
        """The directory of an artifact, below the base and in the local copy."""
        return self.directory(method, key).relative_to(self.root).as_posix()

    def _outputs(self, manifest: Manifest) -> str:
        return "/".join(filter(None, (self._relative(manifest), manifest.place)))


def _remote_sha256(remote: fsspec.AbstractFileSystem, address: str) -> str:
    with remote.open(address, "rb") as stream:
        stream: Any
        return hashlib.file_digest(stream, "sha256").hexdigest()
