"""Lease files in an object store, made by conditional creates (`If-None-Match: *` in S3)."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Final

from fsspec import AbstractFileSystem

from pipelines.store.transfer import make_parent
from stages.errors import UserError

PROBE: Final = "probe-"
_LOCK = threading.Lock()
"""For `memory://`, which is of one process and checks and writes in two steps."""


class RemoteLeases:
    """Lease files below `base`; the heartbeat writes the file again with another count."""

    def __init__(
        self, remote: AbstractFileSystem, base: str, reaching: Callable[[], AbstractContextManager[None]] = nullcontext
    ) -> None:
        self.remote, self.base, self.reaching = remote, base, reaching
        self.is_probed = False

    def list_keys(self) -> list[str]:
        """The keys that have lease files."""
        return [name for name in self._names(self.base) if not name.startswith(PROBE)]

    def tokens(self, key: str) -> list[int]:
        """The tokens that exist for `key`."""
        return [int(name) for name in self._names(f"{self.base}/{key}") if name.isdecimal()]

    def create(self, key: str, token: int, data: bytes) -> bool:
        """A conditional put. Raises UserError for a store that ignores the condition."""
        with self.reaching():
            self._probe()
            return create(self.remote, self._address(key, token), data)

    def read(self, key: str, token: int) -> tuple[bytes, object] | None:
        """Content, which is its own stamp."""
        with self.reaching():
            try:
                data = self.remote.cat_file(self._address(key, token))
            except FileNotFoundError:
                return None
        return data, data

    def beat(self, key: str, token: int, data: bytes) -> None:
        """Write the file with the time in it; the caller has looked whether it is there."""
        with self.reaching():
            self.remote.pipe_file(self._address(key, token), data + f"{time.time_ns()}\n".encode())

    def remove(self, key: str, token: int) -> None:
        """Remove the file, if it is there."""
        with self.reaching():
            remove(self.remote, self._address(key, token))

    def _names(self, directory: str) -> list[str]:
        with self.reaching():
            try:
                names = self.remote.ls(directory, detail=False, refresh=True)
            except FileNotFoundError:
                return []
        return [str(name).rstrip("/").rpartition("/")[2] for name in names]

    def _address(self, key: str, token: int) -> str:
        return f"{self.base}/{key}/{token}"

    def _probe(self) -> None:
        """Once a run: two creates of one file, of which the second must fail."""
        if self.is_probed:
            return
        address = f"{self.base}/{PROBE}{secrets.token_hex(8)}"
        try:
            if not create(self.remote, address, b"1") or create(self.remote, address, b"2"):
                raise _unsafe()
        finally:
            remove(self.remote, address)
        self.is_probed = True


def _unsafe() -> UserError:
    message = "this store cannot create a file only if there is none yet, so two runs could mix their results"
    fix = "update the fsspec backend of its scheme, or use a store on S3, Google Cloud Storage or a shared disk"
    return UserError(message, fix=fix)


def create(remote: AbstractFileSystem, address: str, data: bytes) -> bool:
    """Write a file that must not exist yet; False when it does. Raises UserError where that cannot be asked for."""
    make_parent(remote, address)
    try:
        with _LOCK:
            remote.pipe_file(address, data, mode="create")
    except FileExistsError:
        return False
    except TypeError:  # a backend that knows no `mode`
        raise _unsafe() from None
    return True


def remove(remote: AbstractFileSystem, address: str) -> None:
    """Remove a file, if it is there."""
    try:
        remote.rm_file(address)
    except FileNotFoundError:
        return
