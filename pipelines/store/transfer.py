"""Files to and from an object store: several at once, with progress; one that fails ends the transfer."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, Final

from fsspec import AbstractFileSystem
from fsspec.callbacks import Callback

NUM_THREADS: Final = 8
TELLING_BYTES: Final = 32 << 20
"""Transfers of less than this are over before anybody asks how far they are."""
TELLING_SECONDS: Final = 0.5
Tell = Callable[[float, float, str], None]
OBJECT_STORES: Final = frozenset({"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "oss", "memory"})
"""Schemes without directories: a file can be written anywhere."""


class Transfer:
    """Moves files of known size between a disk and `remote`."""

    def __init__(self, remote: AbstractFileSystem, tell: Tell, what: str, total_bytes: int) -> None:
        self.remote, self.tell, self.what, self.total = remote, tell, what, total_bytes
        self.done = 0
        self._lock = threading.Lock()
        self._told = time.monotonic()

    def upload(self, files: Iterable[tuple[Path, str]]) -> None:
        """Put each local file at its address."""
        self._all(self._upload, files)

    def download(self, files: Iterable[tuple[str, Path]]) -> None:
        """Get each address to its local file."""
        self._all(self._download, files)

    def advance(self, num_bytes: int) -> None:
        """Count bytes that have arrived, and tell now and then."""
        with self._lock:
            self.done += num_bytes
            now = time.monotonic()
            if self.total < TELLING_BYTES or (now - self._told < TELLING_SECONDS and self.done < self.total):
                return
            self._told = now
            self.tell(min(self.done, self.total), self.total, f"bytes {self.what}")

    def _upload(self, local: Path, address: str) -> None:
        make_parent(self.remote, address)
        self.remote.put_file(str(local), address, callback=_Count(self))

    def _download(self, address: str, local: Path) -> None:
        local.parent.mkdir(parents=True, exist_ok=True)
        self.remote.get_file(address, str(local), callback=_Count(self))

    @staticmethod
    def _all(move: Callable[[Any, Any], None], pairs: Iterable[tuple[Any, Any]]) -> None:
        with ThreadPoolExecutor(NUM_THREADS, "transfer") as pool:
            futures: list[Future[None]] = [pool.submit(move, *pair) for pair in pairs]
            ended, waiting = wait(futures, return_when=FIRST_EXCEPTION)
            for future in waiting:
                future.cancel()
            for future in ended:
                future.result()


class _Count(Callback):
    """Passes what one file has moved on to the whole transfer."""

    def __init__(self, transfer: Transfer) -> None:
        super().__init__()
        self.transfer = transfer

    def relative_update(self, inc: int = 1) -> None:
        self.transfer.advance(inc)

    def absolute_update(self, value: int) -> None:
        self.transfer.advance(value - self.value)
        self.value = value


def make_parent(remote: AbstractFileSystem, address: str) -> None:
    """Make the directory of a file, where there are directories."""
    if not is_object_store(remote):
        remote.makedirs(address.rpartition("/")[0], exist_ok=True)


def is_object_store(remote: AbstractFileSystem) -> bool:
    """Whether files need no directory."""
    names = remote.protocol if isinstance(remote.protocol, (tuple, list)) else (remote.protocol,)
    return bool(OBJECT_STORES.intersection(names))
