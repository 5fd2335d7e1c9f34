"""The store's own files by their names in it, alike on a disk and behind a URL.

Writing is atomic: on a disk by renaming, on an object store because a put is.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import chain
from pathlib import Path, PurePosixPath

from pipelines.store import Store
from pipelines.store.contents import write_atomically


def walk(path: Path) -> Iterator[os.stat_result]:
    """What `path` is and everything below it; what vanishes meanwhile, as an old checkpoint does, is left out."""
    below = (os.path.join(place, name) for place, *groups in os.walk(path) for group in groups for name in group)  # noqa: PTH118
    for entry in chain([path], below):
        with suppress(FileNotFoundError):
            yield os.lstat(entry)


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files below a directory."""
    return sum(status.st_size for status in walk(path) if not stat.S_ISDIR(status.st_mode))


class StoreFiles:
    """Reads, writes, lists and removes files of `store`; names are relative, with `/`."""

    def __init__(self, store: Store) -> None:
        self.root, self.reaching = store.root, store.reaching
        self.remote = getattr(store, "remote", None)
        self.base = str(getattr(store, "base", "")).rstrip("/")
        if self.remote is not None:
            self.remote.invalidate_cache()

    @property
    def is_remote(self) -> bool:
        """Whether the store is behind a URL and `root` is only its local copy."""
        return self.remote is not None

    def glob(self, pattern: str) -> list[str]:
        """Names that match, sorted."""
        if self.remote is None:
            return sorted(path.relative_to(self.root).as_posix() for path in self.root.glob(pattern))
        with self.reaching():
            return sorted(self._name(found) for found in self.remote.glob(f"{self.base}/{pattern}"))

    def read_all(self, names: Iterable[str]) -> dict[str, bytes]:
        """The contents of these files; one that is gone meanwhile is left out. Raises UnreachableError."""
        names = list(names)
        if self.remote is None:
            return {name: data for name in names if (data := self._local(name)) is not None}
        with self.reaching():
            found = self.remote.cat([f"{self.base}/{name}" for name in names], on_error="return") if names else {}
            # A single path comes back as it is from some file systems, as a mapping from others.
            found = found if isinstance(found, dict) else {f"{self.base}/{names[0]}": found}
            # Who takes a file that could not be read for one that is not there removes what it protects.
            for problem in found.values():
                if isinstance(problem, Exception) and not isinstance(problem, FileNotFoundError):
                    raise problem
        return {self._name(path): data for path, data in found.items() if isinstance(data, bytes)}

    def read(self, name: str) -> bytes | None:
        """The content of a file, or None."""
        return self.read_all([name]).get(name)

    def write(self, name: str, data: bytes) -> None:
        """Write a file so that a reader sees the old one or the whole new one."""
        if self.remote is None:
            write_atomically(self.root / name, data)
            return
        with self.reaching():
            self.remote.pipe_file(f"{self.base}/{name}", data)

    def remove(self, name: str) -> None:
        """Remove one file, if it is there."""
        if self.remote is None:
            (self.root / name).unlink(missing_ok=True)
            return
        with self.reaching():
            if self.remote.exists(f"{self.base}/{name}"):
                self.remote.rm_file(f"{self.base}/{name}")

    def remove_tree(self, name: str) -> None:
        """Remove a directory with all below it, also from the local copy."""
        if self.remote is not None:
            with self.reaching():
                if self.remote.exists(f"{self.base}/{name}"):
                    self.remote.rm(f"{self.base}/{name}", recursive=True)
        if (self.root / name).is_dir():
            shutil.rmtree(self.root / name)

    def tree_bytes(self, name: str) -> int:
        """Bytes of all files below a directory, here and, for a URL, there."""
        here = size_of(self.root / name)
        if self.remote is None:
            return here
        with self.reaching():
            return here + (self.remote.du(f"{self.base}/{name}") if self.remote.exists(f"{self.base}/{name}") else 0)

    def _local(self, name: str) -> bytes | None:
        try:
            return (self.root / name).read_bytes()
        except (FileNotFoundError, IsADirectoryError):
            return None

    def _name(self, path: str) -> str:
        return str(PurePosixPath("/" + path.lstrip("/")).relative_to("/" + self.base.lstrip("/")))
