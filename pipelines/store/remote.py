"""A store behind an fsspec URL (s3://, gs://, memory://…), worked on through a local copy.

Files go up first and the manifest last, so a manifest that can be read means a complete artifact. Journals, logs and
scratch stay in the local copy; finished runs' journals are copied up.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import fsspec

from pipelines.store.contents import list_files
from pipelines.store.manifest import Manifest
from pipelines.store.store import Store
from stages.errors import UserError
from stages.stage import Output


class RemoteStore(Store):
    """The store at `location`; its local copy is below `REGRAFT_CACHE` (default `~/.cache/regraft`)."""

    def __init__(self, location: str) -> None:
        cache = Path(os.environ.get("REGRAFT_CACHE", Path.home() / ".cache" / "regraft"))
        super().__init__(cache / "stores" / hashlib.sha256(location.encode()).hexdigest()[:16])
        self._location = location.rstrip("/")
        try:
            self.remote, self.base = fsspec.core.url_to_fs(self._location)
            self.remote.makedirs(self.base, exist_ok=True)
        except (ImportError, ValueError) as error:
            fix = "install the fsspec backend of this scheme, for example pip install s3fs"
            raise UserError(f"cannot open the store {location}: {error}", fix=fix) from None
        except OSError as error:
            fix = "check the address and the credentials of the store"
            raise UserError(f"cannot reach the store {location}: {error}", fix=fix) from None

    @property
    def location(self) -> str:
        """The URL."""
        return self._location

    def uri(self, manifest: Manifest, output: str) -> str:
        """The remote address of an output."""
        return f"{self._location}/{self._relative(manifest)}/{output}"

    def find(self, method: str, key: str) -> Manifest | None:
        """The remote manifest; the local copy's is used only when the remote one is there."""
        relative = self.directory(method, key).relative_to(self.root).as_posix()
        try:
            manifest = Manifest.from_json(self.remote.cat_file(f"{self.base}/{relative}/manifest.json"))
        except (FileNotFoundError, ValueError):
            return None
        return manifest if manifest.key == key else None

    def damage(self, manifest: Manifest, *, read: bool = False) -> str | None:
        """What is wrong with the remote files: missing or of another size; with `read`, of another content."""
        for name, output in manifest.outputs.items():
            for file in output.files:
                address = f"{self.base}/{self._relative(manifest)}/{name}/{file.path}"
                if not self.remote.exists(address):
                    return f"{name}/{file.path} is missing"
                size = self.remote.size(address)
                if size != file.size:
                    return f"{name}/{file.path} has {size:,} bytes, {file.size:,} were published"
                if read and _remote_sha256(self.remote, address) != file.sha256:
                    return f"{name}/{file.path} changed: sha256 differs from {file.sha256[:12]}…"
        return None

    def fetch(self, manifest: Manifest, output: str) -> Path:
        """Download the output unless the local copy has it whole."""
        local = self.directory(manifest.method, manifest.key)
        if super().find(manifest.method, manifest.key) is None or super().damage(manifest):
            shutil.rmtree(local, ignore_errors=True)
            self.remote.get(f"{self.base}/{self._relative(manifest)}", str(local), recursive=True)
        return super().fetch(manifest, output)

    def publish(self, draft: Manifest, outputs: Mapping[str, Output], workspace: Path) -> Manifest:
        """Publish in the local copy, then upload: files first, the manifest last."""
        earlier = self.find(draft.method, draft.key)
        if earlier and not self.damage(earlier):
            self.discard(workspace)
            return earlier
        manifest = super().publish(draft, outputs, workspace)
        local, remote = self.directory(manifest.method, manifest.key), f"{self.base}/{self._relative(manifest)}"
        for name, path in list_files(local):
            if name != "manifest.json":
                self.remote.makedirs(f"{remote}/{name}".rpartition("/")[0], exist_ok=True)
                self.remote.put_file(str(path), f"{remote}/{name}")
        self.remote.pipe_file(f"{remote}/manifest.json", (local / "manifest.json").read_bytes())
        return manifest

    def _relative(self, manifest: Manifest) -> str:
        return self.directory(manifest.method, manifest.key).relative_to(self.root).as_posix()


def _remote_sha256(remote: fsspec.AbstractFileSystem, address: str) -> str:
    with remote.open(address, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
