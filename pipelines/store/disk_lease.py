"""Lease files on a disk, made by links, which are atomic on network file systems too."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from pathlib import Path
from typing import Final

NO_LINKS: Final = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS})


class DiskLeases:
    """Lease files on a disk that one or several machines share."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def list_keys(self) -> list[str]:
        """The keys that have lease files."""
        return sorted(path.name for path in self.root.glob("*") if path.is_dir())

    def tokens(self, key: str) -> list[int]:
        """The tokens that exist for `key`."""
        try:
            names = os.listdir(self._directory(key))  # noqa: PTH208  (asked twice a stage; a third of iterdir's cost)
        except FileNotFoundError:
            return []
        return [int(name) for name in names if name.isdecimal()]

    def create(self, key: str, token: int, data: bytes) -> bool:
        """A link to a whole file: atomic on NFS too."""
        target = self._file(key, token)
        draft = self.root / f".{secrets.token_hex(8)}"
        self.root.mkdir(parents=True, exist_ok=True)
        try:
            draft.write_bytes(data)
            while True:
                target.parent.mkdir(exist_ok=True)
                with contextlib.suppress(FileNotFoundError):  # its directory was removed by a holder that is done
                    return self._link(draft, target)
        finally:
            draft.unlink(missing_ok=True)

    def read(self, key: str, token: int) -> tuple[bytes, object] | None:
        """Content and modification time."""
        file = self._file(key, token)
        try:
            return file.read_bytes(), file.stat().st_mtime_ns
        except FileNotFoundError:
            return None

    def beat(self, key: str, token: int, data: bytes) -> None:  # noqa: ARG002
        """Set the modification time, by the clock of the disk's server."""
        os.utime(self._file(key, token))

    def remove(self, key: str, token: int) -> None:
        """Remove the file, and the key's directory with the last one."""
        file = self._file(key, token)
        file.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # not empty: another run is here already
            file.parent.rmdir()

    def _directory(self, key: str) -> Path:
        return self.root / key

    def _file(self, key: str, token: int) -> Path:
        return self.root / key / str(token)

    @staticmethod
    def _link(draft: Path, target: Path) -> bool:
        try:
            target.hardlink_to(draft)
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno not in NO_LINKS:
                raise
            return _create_exclusively(target, draft.read_bytes())
        return True


def _create_exclusively(target: Path, data: bytes) -> bool:
    """For disks without links. A reader may see the file before its content, as of a holder that is not known yet."""
    try:
        with target.open("xb") as stream:
            stream.write(data)
    except FileExistsError:
        return False
    return True
