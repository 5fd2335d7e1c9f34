"""What a plan has to know of artifacts behind a URL, in few requests and many at once.

One listing of an artifact's directory tells whether its files are there, and by the manifest's tag whether the copy of
it on this machine is still the same. What a pipeline had last is looked at in advance, all stages together.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from fsspec import AbstractFileSystem

from pipelines.store.contents import write_cache

NUM_THREADS: Final = 16
TAGS: Final = ("ETag", "etag", "md5Hash")
"""Under which of these names a store gives what changes with the content."""


@dataclass(frozen=True)
class Glance:
    """One artifact as it was when it was looked at."""

    manifest: bytes | None
    sizes: Mapping[str, int] = field(default_factory=dict)
    """Bytes of each file, by its path below the artifact's directory."""


class Glances:
    """Artifacts below `base`, each looked at once; copies of manifests are kept in `copies`."""

    def __init__(self, remote: AbstractFileSystem, base: str, copies: Path) -> None:
        self.remote, self.base, self.copies = remote, base, copies
        self.seen: dict[str, Glance] = {}

    def at(self, place: str) -> Glance:
        """The artifact in the directory `place`."""
        if place not in self.seen:
            self.seen[place] = self._look(place)
        return self.seen[place]

    def look_ahead(self, places: Iterable[str], guard: Callable[[], Any]) -> None:
        """Look at all `places` at once, under `guard`."""

        def look(place: str) -> None:
            with guard():
                self.at(place)

        with ThreadPoolExecutor(NUM_THREADS, "glance") as pool:
            list(pool.map(look, dict.fromkeys(places)))

    def _look(self, place: str) -> Glance:
        below = f"{self.base}/{place}".lstrip("/")
        try:
            listed = self.remote.find(f"{self.base}/{place}", detail=True)
        except FileNotFoundError:
            return Glance(None)
        found = {str(name).lstrip("/").removeprefix(f"{below}/"): about for name, about in listed.items()}
        if "manifest.json" not in found:
            return Glance(None)
        about = found["manifest.json"]
        tag = next((str(about[name]) for name in TAGS if name in about), "")
        return Glance(self._manifest(place, tag), {name: file["size"] for name, file in found.items()})

    def _manifest(self, place: str, tag: str) -> bytes | None:
        """The manifest: the copy when it has this tag, else fetched."""
        copy = self.copies / f"{place.replace('/', '-')}.json"
        if tag and (text := _copied(copy, tag)) is not None:
            return text
        try:
            data = self.remote.cat_file(f"{self.base}/{place}/manifest.json")
        except FileNotFoundError:
            return None  # removed since it was listed
        if tag:
            content = json.dumps({"tag": tag, "manifest": data.decode("utf-8", "replace")})
            write_cache(copy, content.encode())
        return data


def _copied(copy: Path, tag: str) -> bytes | None:
    try:
        content = json.loads(copy.read_bytes())
        return content["manifest"].encode() if content["tag"] == tag else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None  # there is none, or it is damaged: it is fetched again
