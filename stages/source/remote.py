"""Files behind a URL that fsspec knows (`s3://BUCKET/data/*.jsonl`), each at the version it had when it was listed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Final

from stages.errors import RegraftError, StageError, UserError, first_line

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem


VERSIONS: Final = ("etag", "ETag", "Content-MD5", "Digest", "Last-Modified")
"""What a storage may say of a file's version, the best first; without any, fsspec's own key of what it knows counts."""


@dataclass(frozen=True)
class RemoteFile:
    """A file by its URL, and what its storage says of its version, see `VERSIONS`."""

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
        except UserError:
            raise
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
    except UserError:
        raise
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
    """Raises UserError for a web server that tells none: its files would never count as changed."""
    info = filesystem.info(path)
    told = next((str(info[name]) for name in VERSIONS if info.get(name)), "")
    if not told and path.startswith(("http:", "https:")):
        raise UserError(
            f"the server of {path} tells no version of it ({', '.join(VERSIONS[1:])}): a change could not be seen",
            fix="download it, and name the local file",
        )
    return (told or str(filesystem.ukey(path))).strip('"')


def _unreachable(url: str, error: Exception) -> RegraftError:
    return StageError(
        f"{url} cannot be read: {first_line(error)}", fix="check the network, the address and the credentials"
    )
