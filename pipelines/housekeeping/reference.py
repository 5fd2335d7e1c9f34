"""Which artifact is meant: `RUN:stage[.output]`, `stage[.output]` of the newest run that has it, a tag, or a key."""

from __future__ import annotations

import re
from functools import partial
from typing import Final

from pipelines.housekeeping.catalogue import Catalogue, Made
from pipelines.housekeeping.runs import RunRecord, Short, short
from pipelines.housekeeping.tags import read_tags, run_tags
from pipelines.running.journal import runs_called
from pipelines.spec.problems import nearest
from pipelines.store import Manifest
from stages.errors import UserError

KEY: Final = re.compile(r"[0-9a-f]{6,64}")
FORMS: Final = "RUN:stage.output, stage of the newest run, a tag, or the first six or more digits of a key"


def find_artifact(catalogue: Catalogue, text: str) -> Made:
    """The artifact that `text` means. Raises UserError with the nearest valid names."""
    run, colon, stage = text.partition(":")
    if colon and (found := find_runs(catalogue, run)):
        return _in_run(catalogue, _one_run(run, found), stage)
    if tag := read_tags(catalogue.files).get(text):
        if tag.kind == "run":
            raise UserError(f"{text!r} is a tag of a run", fix=f"name one of its stages: {tag.run}:STAGE")
        return _output(catalogue, _held(catalogue, short(tag.method, tag.key), text), tag.output)
    for record in reversed(catalogue.runs.values()):
        if found := _stage_output(catalogue, record, text):
            return found
    if KEY.fullmatch(text):
        return _by_key(catalogue, text)
    raise _unknown(catalogue, text)


def find_runs(catalogue: Catalogue, text: str) -> list[RunRecord]:
    """The runs that `text` may mean."""
    return [catalogue.runs[name] for name in runs_called(text, [*catalogue.runs], partial(run_tags, catalogue.files))]


def _one_run(text: str, found: list[RunRecord]) -> RunRecord:
    if len(found) > 1:
        raise UserError(f"{len(found)} runs begin with {text!r}", fix=nearest(text, [run.name for run in found]))
    return found[0]


def _in_run(catalogue: Catalogue, run: RunRecord, text: str) -> Made:
    if found := _stage_output(catalogue, run, text):
        return found
    if text in run.methods and text not in run.results:
        have = nearest(text, run.results) if run.results else "none of its stages has one"
        raise UserError(f"stage {text!r} of run {run.name} has no result", fix=have)
    raise UserError(f"run {run.name} has no stage {text!r}", fix=nearest(text, run.results))


def _stage_output(catalogue: Catalogue, run: RunRecord, text: str) -> Made | None:
    """The output that `text` names in `run`; names of stages may hold dots themselves."""
    stage, _, output = text.rpartition(".")
    if text in run.results:
        stage, output = text, ""
    if stage not in run.results:
        return None
    manifest = catalogue.get(run.results[stage])
    if manifest is None:
        return None
    return _output(catalogue, manifest, output)


def _output(catalogue: Catalogue, manifest: Manifest, output: str) -> Made:
    output = output or catalogue.main_output(manifest)
    if output not in manifest.outputs:
        raise UserError(f"stage {manifest.stage!r} has no output {output!r}", fix=nearest(output, manifest.outputs))
    return Made(manifest, output)


def _held(catalogue: Catalogue, name: Short, text: str) -> Manifest:
    manifest = catalogue.get(name)
    if manifest is None:
        raise UserError(f"what {text!r} stands for is not in the store", fix="run its pipeline again")
    return manifest


def _by_key(catalogue: Catalogue, text: str) -> Made:
    everything = [*catalogue.manifests.values(), *catalogue.removed.values()]
    found = [manifest for manifest in everything if manifest.key.startswith(text)]
    if len(found) > 1:
        keys = [f"{manifest.key[: len(text) + 6]} ({manifest.stage})" for manifest in found]
        raise UserError(f"{len(found)} keys begin with {text}", fix=f"give more digits: {', '.join(keys[:8])}")
    if found:
        return _output(catalogue, found[0], "")
    by_content = [made for digest, made in catalogue.by_digest.items() if digest.startswith(text)]
    if len(by_content) == 1:
        return by_content[0][0]
    raise _unknown(catalogue, text)


def _unknown(catalogue: Catalogue, text: str) -> UserError:
    runs = list(catalogue.runs.values())
    stages = dict.fromkeys(stage for run in reversed(runs) for stage in run.results)
    names = [*read_tags(catalogue.files), *stages]
    if not runs:
        where = catalogue.store.location
        return UserError(f"no runs in {where}", fix="regraft run PIPELINE, or point to a store with --store")
    run, colon, _ = text.partition(":")
    if colon:
        return UserError(f"no run {run!r} in {catalogue.store.location}", fix=nearest(run, [r.name for r in runs]))
    return UserError(f"no artifact {text!r} in {catalogue.store.location}", fix=f"{nearest(text, names)}; or {FORMS}")
