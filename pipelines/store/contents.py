"""Digests of local files, remembered by size, time and inode so that an untouched file is read once.

A file that was rewritten has another time or inode and is read again; a file whose bytes rot without its metadata
changing is found by `verify`, which always reads.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

from pipelines.store.manifest import File

Stamp = tuple[int, int, int]
"""Size in bytes, modification time in ns, inode."""


class StampedDigests:
    """File digests with the stamp each was taken at, kept in one JSON file."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.known: dict[str, tuple[Stamp, str]] = {}
        self.changed = False
        try:
            content = json.loads(file.read_bytes())
            self.known = {name: ((entry[0], entry[1], entry[2]), entry[3]) for name, entry in content.items()}
        except (OSError, ValueError, AttributeError, IndexError, TypeError):
            self.changed = True  # a cache that is missing or damaged is made again

    def sha256(self, path: Path, name: str) -> str:
        """SHA-256 of the file at `path`, remembered under `name`."""
        return self.of_status(path, name, path.stat())

    def of_status(self, path: Path | str, name: str, status: os.stat_result) -> str:
        """The same, for a file whose `status` is at hand."""
        stamp = _stamp(status)
        entry = self.known.get(name)
        if entry and entry[0] == stamp:
            return entry[1]
        digest = sha256_file(path)
        self.known[name], self.changed = (stamp, digest), True
        return digest

    def save(self) -> None:
        """Write what was learnt, if anything was."""
        if self.changed:
            content = {name: [*stamp, digest] for name, (stamp, digest) in sorted(self.known.items())}
            write_cache(self.file, json.dumps(content).encode())
            self.changed = False


def sha256_file(path: Path | str) -> str:
    """SHA-256 of a file, 64 hex digits."""
    with Path(path).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def list_files(directory: Path) -> Iterator[tuple[str, Path]]:
    """Every regular file below `directory` with its path relative to it, sorted. Links to files are followed."""
    for path in sorted(directory.rglob("*")):
        if path.is_file():
            yield path.relative_to(directory).as_posix(), path


def describe(directory: Path, digests: StampedDigests, prefix: str) -> tuple[File, ...]:
    """The files of an output directory; digests are remembered under `prefix/path`."""
    return tuple(
        File(name, path.stat().st_size, digests.sha256(path, f"{prefix}/{name}"))
        for name, path in list_files(directory)
    )


def damage(directory: Path, files: tuple[File, ...], digests: StampedDigests, prefix: str) -> str | None:
    """What is wrong with the files on disk, or None: missing, or other content than recorded."""
    for file in files:
        path = f"{directory}/{file.path}"
        try:
            status = os.stat(path)  # noqa: PTH116  (half the cost of Path.stat, and this is asked for every file)
        except FileNotFoundError:
            return f"{prefix}/{file.path} is missing"
        if status.st_size != file.size:
            return f"{prefix}/{file.path} has {status.st_size:,} bytes, {file.size:,} were published"
        found = digests.of_status(path, f"{prefix}/{file.path}", status)
        if found != file.sha256:
            return f"{prefix}/{file.path} changed on disk: sha256 {found[:12]}…, published {file.sha256[:12]}…"
    return None


def write_atomically(file: Path, data: bytes, *, durable: bool = True) -> None:
    """Write `data` so that a reader sees the old file or the whole new one.

    What is not `durable` may be lost when the power fails, which is fine for what can be had again.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}.{secrets.token_hex(4)}")
    try:
        with temporary.open("wb") as stream:
            stream.write(data)
            if durable:
                stream.flush()
                os.fsync(stream.fileno())
        temporary.replace(file)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_cache(file: Path, data: bytes) -> None:
    """Write what is only remembered: where nothing may be written, or no room is left, it is not."""
    with contextlib.suppress(OSError):
        write_atomically(file, data, durable=False)


def tree_digest(source: Path, digests: StampedDigests) -> str:
    """Digest of a file, or of a directory's files with their names. For what parameters point at outside the store."""
    if source.is_file():
        return digests.sha256(source, str(source))
    lines = [f"{name}\0{digests.sha256(path, str(path))}" for name, path in list_files(source)]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _stamp(status: os.stat_result) -> Stamp:
    return status.st_size, status.st_mtime_ns, status.st_ino
