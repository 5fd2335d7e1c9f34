"""Files behind a URL that fsspec knows (`s3://BUCKET/data/*.jsonl`), each at the version it had when it was listed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from stages.errors import RegraftError, StageError, UserError

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem


@dataclass(frozen=True)
class RemoteFile:
    """A file by its URL, and what its storage says of its version: an ETag, where there are any."""

    url: str
    version: str

    @property
    def name(self) -> str:
        """The last part of the URL."""
        return PurePosixPath(self.url).name

    def __str__(self) -> str:
        return self.url

    def fetch(self, folder: Path) -> Path:
        """Download it into `folder`. Raises UserError when it is gone or not the version it was."""
        filesystem, path = _open(self.url)
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / self.name
        try:
            filesystem.invalidate_cache()
            found = _version(filesystem, path)
            if found == self.version:
                filesystem.get_file(path, str(file))
        except FileNotFoundError:
            raise UserError(f"{self.url} is gone since the run began", fix="put it back, or plan again") from None
        except Exception as error:
            raise _unreachable(self.url, error) from error
        if found != self.version:
            raise UserError(
                f"{self.url} has changed since the run began: it was {self.version}, now it is {found}",
                fix="run the pipeline again, and let files be while a run reads them",
            )
        return file


def remote_files(url: str) -> list[RemoteFile]:
    """The files that a URL of a file, a folder or a glob names, by name. Raises UserError when there is none."""
    filesystem, path = _open(url)
    try:
        found = filesystem.glob(path) if set(path) & set("*?[") else filesystem.find(path)
        files = [str(name) for name in sorted(found) if filesystem.isfile(name)]
        versions = {name: _version(filesystem, name) for name in files}
    except FileNotFoundError:
        files, versions = [], {}
    except Exception as error:
        raise _unreachable(url, error) from error
    if not files:
        raise UserError(f"{url!r} names no file", fix="check the bucket, the path and the pattern")
    return [RemoteFile(filesystem.unstrip_protocol(name), versions[name]) for name in files]


def _open(url: str) -> tuple[AbstractFileSystem, str]:
    import fsspec

    try:
        filesystem, path = fsspec.url_to_fs(url)
    except (ImportError, ValueError) as error:
        fix = "pip install 'regraft[s3]'" if url.startswith("s3:") else "install the fsspec package for it"
        raise UserError(f"{url!r} cannot be read: {error}", fix=fix) from None
    return filesystem, str(path)


def _version(filesystem: Any, path: str) -> str:
    info = filesystem.info(path)
    return str(info.get("ETag") or info.get("etag") or filesystem.ukey(path)).strip('"')


def _unreachable(url: str, error: Exception) -> RegraftError:
    told = str(error).strip() or type(error).__name__
    return StageError(
        f"{url} cannot be read: {told.splitlines()[0]}", fix="check the network, the address and the credentials"
    )
