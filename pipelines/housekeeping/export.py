"""Copies an artifact out of the store into a directory that needs nothing else: files, card, lineage, pipeline."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from pipelines.housekeeping.ancestry import Ancestry, trace
from pipelines.housekeeping.card import dataset_card, model_card
from pipelines.housekeeping.catalogue import Catalogue, Made
from pipelines.housekeeping.directory import LINEAGE, note_of
from pipelines.housekeeping.figures import facts_of, measured_of
from pipelines.housekeeping.publish import Publisher
from pipelines.housekeeping.reference import find_artifact
from pipelines.json_text import json_text
from pipelines.running.journal import Event, Journal
from pipelines.store import Store
from stages.errors import UserError

UPSTREAM: Final = "README.upstream.md"
"""What the card of the artifact itself is called beside ours."""


@dataclass(frozen=True)
class Exported:
    """What was written where."""

    made: Made
    directory: Path
    files: tuple[str, ...]


def export(store: Store, what: str, directory: Path) -> Exported:
    """Copy the artifact `what` into `directory`, in one step.

    Raises UserError for an artifact that is not there or damaged, and for a directory that is not empty.
    """
    catalogue = Catalogue.read(store)
    made = find_artifact(catalogue, what)
    if catalogue.gone(made.manifest):
        fix = f"run its pipeline again, or choose another: {store.command('status all')}"
        raise UserError(f"the files of {made.name} were removed from the store, only its lineage is left", fix=fix)
    _require_empty(directory, store)
    source = store.fetch(made.manifest, made.output)
    draft = directory.absolute().with_name(f".{directory.absolute().name}.{os.getpid()}")
    try:
        draft.parent.mkdir(parents=True, exist_ok=True)
        _copy(made, source, draft)
        if made.record.kind != "report":
            _describe(catalogue, made, draft, directory.absolute().name)
        if directory.exists():
            directory.rmdir()
        draft.rename(directory)
    except OSError as error:
        raise UserError(
            f"cannot write {directory}: {error.strerror or error}", fix="choose another directory"
        ) from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    names = sorted(path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file())
    return Exported(made, directory, tuple(names))


def _require_empty(directory: Path, store: Store) -> None:
    if directory.is_dir() and (found := sorted(path.name for path in directory.iterdir())):
        listed = ", ".join(found[:4]) + (f", … ({len(found)} in all)" if len(found) > 4 else "")
        raise UserError(f"{directory} is not empty: it holds {listed}", fix="name a directory that is new or empty")
    if directory.exists() and not directory.is_dir():
        raise UserError(f"{directory} is a file", fix="name a directory that is new or empty")
    if directory.absolute().is_relative_to(store.root):
        raise UserError(
            f"{directory} lies inside the store", fix="name a directory outside it: exports are yours to edit"
        )


def _copy(made: Made, source: Path, draft: Path) -> None:
    """Copy contents only: what a store protects from writing may be edited here."""
    for file in made.record.files:
        target = draft / file.path
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / file.path, target)


def _describe(catalogue: Catalogue, made: Made, draft: Path, name: str) -> None:
    """Write card, lineage and pipeline into `draft`."""
    started = _run_started(catalogue, made)
    ancestry = trace(catalogue, made)
    publisher = Publisher([started, ancestry.to_json()])
    ancestry = Ancestry.from_json(publisher.tree(ancestry.to_json()))
    _write(draft / LINEAGE, json_text(note_of(ancestry, made.record.files), indent=1) + "\n")
    if resolved := started.get("resolved"):
        _write(draft / "pipeline.yaml", yaml.safe_dump(publisher.tree(resolved), sort_keys=False, allow_unicode=True))
    if (draft / "README.md").exists():
        (draft / "README.md").rename(draft / UPSTREAM)
    files = [path.name for path in draft.iterdir()]
    if made.record.kind == "model":
        facts = dict(facts_of(catalogue, made))
        card = model_card(name, ancestry, _read(draft / "config.json"), facts, measured_of(catalogue, made), files)
    else:
        card = dataset_card(name, ancestry, _read(draft / "dataset.json"), files)
    _write(draft / "README.md", publisher.text(card))


def _run_started(catalogue: Catalogue, made: Made) -> Event:
    """The event that started the run which made the artifact; empty when its journal is not on this machine."""
    file = catalogue.store.run_directory(made.manifest.run) / "journal.jsonl" if made.manifest.run else None
    events = Journal(file).read() if file is not None and file.exists() else []
    return next((event for event in events if event["event"] == "run-started"), {})


def _read(file: Path) -> Mapping[str, Any]:
    try:
        return json.loads(file.read_bytes())
    except (FileNotFoundError, ValueError):
        return {}  # the stage wrote what it calls a model without it; the copy is as it is


def _write(file: Path, text: str) -> None:
    file.write_text(text, encoding="utf-8")
