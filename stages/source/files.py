"""Which files a path, directory or glob names, and of what kind each is: records, or one document."""

from __future__ import annotations

from collections import Counter
from pathlib import Path, PurePosixPath
from typing import Final, TypeVar

from stages.errors import UserError, listing
from stages.source.locate import locate
from stages.source.remote import RemoteFile

RECORDS: Final = frozenset({".jsonl", ".json", ".parquet", ".csv"})
"""Kinds of files that hold a document a record."""
TEXTS: Final = frozenset(
    {".txt", ".md", ".rst", ".tex", ".py", ".pyi", ".js", ".ts", ".java", ".c", ".h", ".cpp", ".hpp"}
    | {".go", ".rs", ".rb", ".sh", ".sql", ".r", ".jl"}
)
"""Kinds of files that are one document each."""
KINDS: Final = RECORDS | TEXTS
GZIP: Final = ".gz"
READABLE: Final = f"{', '.join(sorted(KINDS))}; and all but .parquet with {GZIP} behind it"
AnyFile = TypeVar("AnyFile", Path, RemoteFile)


def kind_of(name: str) -> str:
    """The suffix that says how a file is read: `.jsonl` for `a.jsonl` and for `a.jsonl.gz`."""
    path = PurePosixPath(name)
    plain = PurePosixPath(path.stem).suffix if path.suffix == GZIP else path.suffix
    return path.suffix if plain == ".parquet" and path.suffix == GZIP else plain


def dataset_files(text: str) -> list[Path]:
    """The data files that a path, directory or glob names, sorted. Raises UserError for none, and for mixed kinds.

    A directory gives its records and .txt files; one without any gives its other texts and source code.
    """
    folder, pattern = _split_glob(text)
    path = locate(folder)
    if path.is_file():
        files = [path]
    elif pattern:
        files = sorted(file for file in path.glob(pattern) if file.is_file())
    else:
        every = sorted(file for file in path.rglob("*") if file.is_file())
        data = [file for file in every if kind_of(file.name) in RECORDS | {".txt"}]
        files = data or [file for file in every if kind_of(file.name) in TEXTS]
    if not files or not all(kind_of(file.name) in KINDS for file in files):
        names = sorted(file.name for file in files or path.iterdir())
        raise UserError(f"{text!r} names no data file: found {listing(names)}", fix=f"readable are {READABLE}")
    return of_one_kind(files, text)


def of_one_kind(files: list[AnyFile], text: str) -> list[AnyFile]:
    """The files, if all hold records of one kind or all are documents. Raises UserError."""
    kinds = Counter(sorted(kind_of(file.name) for file in files))
    told = " and ".join(f"{count} {kind}" for kind, count in kinds.items())
    if not KINDS.issuperset(kinds):
        raise UserError(f"{text!r} has {told} files", fix=f"readable are {READABLE}")
    if len(kinds) > 1 and not TEXTS.issuperset(kinds):
        folder, commonest = _split_glob(text)[0].rstrip("/"), kinds.most_common(1)[0][0]
        raise UserError(f"{text!r} mixes {told} files", fix=f"choose with a glob: {folder}/*{commonest}")
    return files


def _split_glob(text: str) -> tuple[str, str]:
    """`data/*/x.jsonl` as (`data`, `*/x.jsonl`); the second part is "" without wildcards."""
    parts = text.split("/")
    wild = next((index for index, part in enumerate(parts) if set(part) & set("*?[")), len(parts))
    return "/".join(parts[:wild]) or ("/" if text.startswith("/") else "."), "/".join(parts[wild:])
