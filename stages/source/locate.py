"""Where a source is: `package:NAME/sub/path`, `hub:ORG/NAME@REVISION`, or a local path.

A package is found through its installed metadata, never by importing it. A path counts by content wherever it lies; a
hub reference counts as written, so it has to be pinned.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Final

from stages.errors import UserError, listing

BRANCHES: Final = frozenset({"main", "master", "HEAD"})
PICKLED: Final = frozenset({".bin", ".pt", ".pth", ".pkl", ".ckpt"})


@dataclass(frozen=True)
class HubReference:
    """A repository on a Hugging Face hub at a pinned revision (a commit or a tag)."""

    repository: str
    revision: str

    def __str__(self) -> str:
        return f"hub:{self.repository}@{self.revision}"


def hub_reference(text: str) -> HubReference:
    """Read `hub:ORG/NAME@REVISION`. Raises UserError when the form is wrong or the revision can move."""
    found = re.fullmatch(r"hub:([\w.-]+(?:/[\w.-]+)?)(?:@(.*))?", text)
    if found is None:
        raise UserError(f"{text!r} is no hub reference", fix="write hub:ORG/NAME@REVISION")
    repository, revision = found.group(1), found.group(2) or ""
    if not revision or revision in BRANCHES:
        state = f"names the moving branch {revision!r}" if revision else "names no revision"
        raise UserError(
            f"{text!r} {state}: the result would change when the repository does",
            fix=f"pin a commit (40 hex digits, on the repository's 'Files > History' page) or a tag: "
            f"hub:{repository}@COMMIT",
        )
    return HubReference(repository, revision)


def locate(text: str) -> Path:
    """The existing file or directory that `package:…` or a local path names. Raises UserError with the nearest name."""
    if text.startswith("package:"):
        name, _, inside = text.removeprefix("package:").partition("/")
        return _existing(package_folder(name) / inside, text, prefix=f"package:{name}")
    if text.startswith("hub:"):
        raise ValueError(f"{text} is a hub reference, not a path")
    if found := re.match(r"([a-z][a-z0-9+]+):", text):
        raise UserError(
            f"{text!r} has the unknown scheme {found.group(1)!r}",
            fix="write package:NAME, hub:ORG/NAME@REVISION, or a local path",
        )
    return _existing(Path(text).expanduser().absolute(), text)


def package_folder(name: str) -> Path:
    """The folder of the installed distribution `name`'s module. Raises UserError when it is not installed."""
    try:
        distribution = metadata.distribution(name)
    except (metadata.PackageNotFoundError, ValueError):
        raise UserError(
            f"the package {name!r} is not installed here{nearest(name, _installed())}",
            fix=f"pip install --no-deps {name}",
        ) from None
    wanted = re.sub(r"[-.]+", "_", name).lower()
    folders = {file.parts[0] for file in distribution.files or () if len(file.parts) > 1}
    folders = {folder for folder in folders if not folder.endswith((".dist-info", ".data")) and folder != ".."}
    if not folders:
        raise UserError(f"the package {name!r} records no files of its own", fix=f"pip install --no-deps {name}")
    folder = wanted if wanted in folders else min(folders)
    return Path(str(distribution.locate_file(folder)))


def package_licence(name: str) -> str:
    """The licence that the installed distribution `name` declares, or ""."""
    fields = metadata.metadata(name)
    return str(fields.get("License-Expression") or fields.get("License") or "").strip().partition("\n")[0]


def nearest(name: str, candidates: Iterable[str]) -> str:
    """`; did you mean 'x'?` for the nearest of `candidates`, or "" when none is near."""
    options = list(candidates)
    found = difflib.get_close_matches(name, options, n=1, cutoff=0.5)
    return f"; did you mean {found[0]!r}?" if found else ""


def _existing(path: Path, text: str, prefix: str = "") -> Path:
    if path.exists():
        return path
    folder = path.parent
    while not folder.is_dir():
        folder = folder.parent
    root = package_folder(prefix.removeprefix("package:")) if prefix else None
    same_name = sorted(found for found in root.rglob("*") if found.name == path.name) if root else []
    if root and same_name:
        hint = f"; did you mean '{prefix}/{same_name[0].relative_to(root).as_posix()}'?"
    else:
        hint = nearest(path.name, sorted(entry.name for entry in folder.iterdir()))
    names = sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith(("__", ".")))
    raise UserError(f"{text!r}: there is no {path}{hint}", fix=f"{folder} holds {listing(names)}")


def _installed() -> list[str]:
    return [str(found.metadata["Name"]) for found in metadata.distributions() if found.metadata["Name"]]
