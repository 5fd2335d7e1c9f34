"""What a run was asked to do, kept beside its journal: it can be done again after the file was edited or removed.

`runs/<run>/request.json` has the pipeline file as it was read, the overrides, the selection, the options, and the run
that this one reruns or resumes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.planning.plan import Earlier
from pipelines.planning.selection import EVERYTHING, Selection
from pipelines.planning.smoke import smoke_version
from pipelines.running.journal import Journal
from pipelines.running.result import GOOD
from pipelines.spec.budgets import with_budgets
from pipelines.spec.document import Document
from pipelines.spec.load import parse
from pipelines.spec.pipeline import Pipeline, StageSpec
from pipelines.store import Manifest, Store
from pipelines.store.contents import write_atomically
from stages.errors import UserError


@dataclass(frozen=True, kw_only=True)
class RunRequest:
    """One request for a run; nothing in it but `text` and `overrides` can change a result."""

    file: str = ""
    text: str = ""
    """The pipeline file as it was read."""
    overrides: tuple[str, ...] = ()
    selection: Selection = EVERYTHING
    rerun_of: str = ""
    """The run whose artifacts are the inputs of this one."""
    resumes: str = ""
    """The interrupted or failed run that this one goes on with."""
    directory: str = ""
    """The working directory, from which relative paths count."""
    executor: str = "ray"
    cluster: str = "local"
    track: bool = True
    fail_fast: bool = False
    smoke: bool = False

    def write(self, directory: Path) -> None:
        """Keep the request in the directory of its run."""
        content = {**vars(self), "overrides": list(self.overrides), "selection": self.selection.as_json()}
        write_atomically(directory / "request.json", json.dumps(content, indent=1).encode() + b"\n")

    @classmethod
    def read(cls, store: Store, run: str) -> RunRequest:
        """The request of `run`. Raises UserError when it was not kept."""
        file = store.run_directory(run) / "request.json"
        try:
            content = json.loads(file.read_bytes())
            selection = Selection.from_json(content.pop("selection"))
            return cls(**{**content, "overrides": tuple(content["overrides"]), "selection": selection})
        except FileNotFoundError:
            fix = "regraft run PIPELINE: what is finished is kept"
            raise UserError(f"run {run} does not say what it was asked to do", where=str(file), fix=fix) from None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"this is no request: {error}", where=str(file), fix="regraft run PIPELINE") from None

    def pipeline(self, overrides: tuple[str, ...] = ()) -> Pipeline:
        """The pipeline as it was, with further `overrides`. Raises UserError."""
        more = with_budgets(Path(self.file), overrides)
        pipeline = parse(Document(self.file, self.text), (*self.overrides, *more))
        return smoke_version(pipeline) if self.smoke else pipeline

    def drift(self) -> str:
        """How the file on disk differs from the one the run was started with; "" when it does not."""
        try:
            now = Path(self.file).read_bytes()
        except OSError:
            return f"{self.file} is gone"
        return "" if now == self.text.encode() else f"{self.file} has changed"


def earlier_artifacts(store: Store, request: RunRequest) -> Earlier | None:
    """Finds a stage's artifact in the runs that `request` goes back to, the nearest first."""
    if not (request.rerun_of or request.resumes):
        return None
    made: dict[str, tuple[str, str]] = {}
    for run in _ancestors(store, request):
        for stage, place in results(store, run).items():
            made.setdefault(stage, place)

    def find(spec: StageSpec) -> Manifest | None:
        return store.find(*made[spec.name]) if spec.name in made else None

    return find


def results(store: Store, run: str) -> dict[str, tuple[str, str]]:
    """Method and key of the artifact that each stage had in `run`; stages that failed have none."""
    events = Journal(store.run_directory(run) / "journal.jsonl").read()
    return {event["stage"]: (event["method"], event["key"]) for event in events if _has_result(event)}


def finished(store: Store, run: str) -> set[str]:
    """Stages that were made in `run` itself."""
    events = Journal(store.run_directory(run) / "journal.jsonl").read()
    return {event["stage"] for event in events if event.get("state") == "done" and "stage" in event}


def _has_result(event: dict[str, Any]) -> bool:
    good = event.get("state") in GOOD and event["event"] == "stage-finished"
    return good and bool(event.get("key")) and "method" in event


def _ancestors(store: Store, request: RunRequest) -> Iterator[str]:
    pending, seen = [request.resumes, request.rerun_of], set[str]()
    while pending:
        run = pending.pop(0)
        if run and run not in seen:
            seen.add(run)
            yield run
            if (store.run_directory(run) / "request.json").exists():
                before = RunRequest.read(store, run)
                pending += [before.resumes, before.rerun_of]
