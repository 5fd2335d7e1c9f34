"""The code that a submitted run takes along: one zip, named by its content, the same bytes for the same files.

It has the working directory (what git would not ignore) and, unless the cluster has it, regraft itself.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent
"""Where regraft's packages are."""
OWN_PACKAGES: Final = ("clusters", "grafts", "pipelines", "stages")
LIMIT_BYTES: Final = 100 << 20
"""Our own limit: Ray keeps packages in the memory of its head, and would take larger ones."""
NUM_NAMED: Final = 8
EXCLUDED: Final = frozenset(
    {".git", ".regraft", ".venv", "venv", "__pycache__", ".ruff_cache", ".pytest_cache", ".mypy_cache", ".hypothesis"}
    | {"node_modules", ".ipynb_checkpoints", ".tox", ".DS_Store"}
)
EARLIEST: Final = (1980, 1, 1, 0, 0, 0)
"""The oldest date that a zip can hold: when a file was written is not content."""


class PackageError(ValueError):
    """What cannot be sent; `fix` says what to do."""

    def __init__(self, message: str, fix: str) -> None:
        super().__init__(message)
        self.fix = fix


@dataclass(frozen=True)
class Package:
    """Files by the name they will have."""

    files: Mapping[str, Path]

    @property
    def digest(self) -> str:
        """SHA-256, in hex, over the names and contents of all files."""
        total = hashlib.sha256()
        for name, path in sorted(self.files.items()):
            content = hashlib.sha256(path.read_bytes()).hexdigest()
            total.update(f"{name}\0{_mode(path):o}\0{content}\n".encode())
        return total.hexdigest()

    @property
    def num_bytes(self) -> int:
        """Bytes of all files, not compressed."""
        return sum(path.stat().st_size for path in self.files.values())

    def write(self, file: Path) -> None:
        """Write the zip."""
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as archive:
            for name, path in sorted(self.files.items()):
                entry = zipfile.ZipInfo(name, EARLIEST)
                entry.external_attr = _mode(path) << 16
                entry.compress_type = zipfile.ZIP_DEFLATED
                archive.writestr(entry, path.read_bytes())


def collect(directory: Path, more: Mapping[str, Path], *, with_regraft: bool) -> Package:
    """The package of `directory`, with `more` files under the names given.

    Raises PackageError when it is too large, naming the biggest files, or when a file of the directory would stand in
    for one of regraft's.
    """
    files = dict(_own_files()) if with_regraft else {}
    for name in _listed(directory):
        path = directory / name
        if name in files and path.resolve() != files[name] and path.read_bytes() != files[name].read_bytes():
            fix = f"rename {name}, or submit from another directory"
            raise PackageError(f"{path} would take the place of regraft's own {name} on the cluster", fix)
        files[name] = path
    package = Package({**files, **more})
    _require_small(package, directory)
    return package


def _require_small(package: Package, directory: Path) -> None:
    if package.num_bytes <= LIMIT_BYTES:
        return
    sizes = sorted(((path.stat().st_size, name) for name, path in package.files.items()), reverse=True)[:NUM_NAMED]
    biggest = "\n".join(f"  {size / 2**20:9.1f} MiB  {name}" for size, name in sizes)
    raise PackageError(
        f"the files of {directory} have {package.num_bytes / 2**20:,.0f} MiB in all, at most "
        f"{LIMIT_BYTES >> 20} MiB can be sent along; the biggest:\n{biggest}",
        "list what the run does not need in .gitignore, keep data in the store or a bucket, or submit from a directory "
        "that has only the code",
    )


def _own_files() -> Iterator[tuple[str, Path]]:
    for package in OWN_PACKAGES:
        for path in sorted((ROOT / package).rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                yield path.relative_to(ROOT).as_posix(), path.resolve()


def _listed(directory: Path) -> list[str]:
    """Files below `directory` that git does not ignore, whether or not the directory belongs to a repository."""
    names = _git_listed(directory)
    if names is None:
        names = _walked(directory)
    return [name for name in names if not EXCLUDED.intersection(name.split("/")) and (directory / name).is_file()]


def _git_listed(directory: Path) -> list[str] | None:
    """What git lists; None without git."""
    command = ["ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    done = _git(["-C", str(directory), *command])
    if done is None or done.returncode == 0:
        return None if done is None else _names(done.stdout)
    with tempfile.TemporaryDirectory() as empty:
        _git(["init", "--quiet", empty])
        done = _git([f"--git-dir={empty}/.git", f"--work-tree={directory}", "-C", str(directory), *command])
    return _names(done.stdout) if done is not None and done.returncode == 0 else None


def _git(arguments: list[str]) -> subprocess.CompletedProcess[bytes] | None:
    try:
        return subprocess.run(["git", *arguments], capture_output=True, check=False)
    except FileNotFoundError:
        return None


def _names(listed: bytes) -> list[str]:
    return [os.fsdecode(name) for name in listed.split(b"\0") if name]


def _walked(directory: Path) -> list[str]:
    found = []
    for parent, directories, files in os.walk(directory):
        directories[:] = [name for name in directories if name not in EXCLUDED]
        found += [(Path(parent) / name).relative_to(directory).as_posix() for name in files]
    return found


def _mode(path: Path) -> int:
    return 0o755 if os.access(path, os.X_OK) else 0o644
