"""Which artifact a directory on disk is a copy of: by the `lineage.json` an export wrote, or by its content."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pipelines.housekeeping.ancestry import Ancestry, trace
from pipelines.housekeeping.catalogue import Catalogue, Made, began
from pipelines.store.contents import list_files, sha256_file
from pipelines.store.manifest import File
from stages.errors import UserError

LINEAGE: Final = "lineage.json"
WRITTEN: Final = frozenset({LINEAGE, "README.md", "pipeline.yaml"})
"""What an export adds to the files of an artifact."""
PAYLOAD: Final = (".safetensors", ".parquet")
"""What makes a model or dataset the one it is, whatever else was edited; a report is its `report.json`."""


@dataclass(frozen=True)
class Traced:
    """The lineage of a directory, how it was found, and which files are no longer as they were published."""

    ancestry: Ancestry
    by: str
    differs: tuple[str, ...]


def trace_directory(directory: Path, catalogue: Catalogue | None) -> Traced:
    """Lineage of the copy in `directory`. Raises UserError when nothing tells where it comes from."""
    digests = {name: (path.stat().st_size, path) for name, path in list_files(directory) if name not in WRITTEN}
    if not digests:
        raise UserError(f"{directory} holds no files", fix="name the directory that holds the model")
    found = {name: File(name, size, sha256_file(path)) for name, (size, path) in digests.items()}
    note = directory / LINEAGE
    if note.is_file():
        ancestry, files = _read_note(note)
        return Traced(ancestry, LINEAGE, _differing(found, files))
    made = _by_content(found, catalogue) if catalogue else None
    if catalogue is None or made is None:
        raise UserError(
            f"nothing tells where {directory} comes from: it has no {LINEAGE}, and no artifact here has its files",
            fix="name the store it was made in with --store",
        )
    return Traced(trace(catalogue, made), "content", _differing(found, made.record.files))


def note_of(ancestry: Ancestry, files: tuple[File, ...]) -> dict[str, Any]:
    """What `lineage.json` holds: the walk, and the digests of the artifact's files."""
    return {**ancestry.to_json(), "files": {file.path: [file.size, file.sha256] for file in files}}


def _read_note(note: Path) -> tuple[Ancestry, tuple[File, ...]]:
    try:
        content = json.loads(note.read_bytes())
        files = tuple(File(name, size, sha256) for name, (size, sha256) in content["files"].items())
        return Ancestry.from_json(content), files
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        fix = "remove it to be traced by content, or export the artifact again"
        raise UserError(
            f"this is no lineage as `regraft export` writes it: {error}", where=str(note), fix=fix
        ) from None


def _by_content(found: Mapping[str, File], catalogue: Catalogue) -> Made | None:
    """The newest artifact with the same weights or data; the one most of whose other files agree."""
    wanted = _payload(tuple(found.values()))
    candidates = [made for made in catalogue.all_outputs() if wanted and _payload(made.record.files) == wanted]
    return max(
        candidates, key=lambda made: (-len(_differing(found, made.record.files)), began(made.manifest)), default=None
    )


def _payload(files: tuple[File, ...]) -> frozenset[str]:
    heavy = [file for file in files if file.path.endswith(PAYLOAD)]
    return frozenset(file.sha256 for file in heavy or [file for file in files if file.path == "report.json"])


def _differing(found: Mapping[str, File], published: tuple[File, ...]) -> tuple[str, ...]:
    """`config.json changed`, `x.json is missing`, `y.json is new`."""
    known = {file.path: file for file in published}
    texts = [f"{name} is missing" for name in known if name not in found]
    texts += [f"{name} is new" for name in found if name not in known and not name.startswith(".")]
    texts += [f"{name} changed" for name, file in found.items() if name in known and file != known[name]]
    return tuple(sorted(texts))
