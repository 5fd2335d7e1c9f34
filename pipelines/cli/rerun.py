"""`regraft rerun`, `resume` and `accept-drift`."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from pipelines.cli.history import find_run
from pipelines.cli.options import see_working_directory
from pipelines.cli.session import RunOptions, View, run_pipeline
from pipelines.hints import naming
from pipelines.planning.drift import accept
from pipelines.planning.plan import make_plan
from pipelines.planning.selection import Selection, arms
from pipelines.planning.smoke import full_location
from pipelines.running.origin import RunRequest, finished
from pipelines.running.result import RunResult
from pipelines.spec.pipeline import Pipeline
from pipelines.store import Store
from stages.errors import UserError


class Ran(NamedTuple):
    """A run that went on from another."""

    pipeline: Pipeline
    result: RunResult
    arguments: str
    """Those that name the pipeline again."""
    smoke: bool


@dataclass(frozen=True)
class Again:
    """Which run is meant, and how to go on; None is as that run did."""

    store: Store
    run: str
    cluster: str | None = None
    inline: bool | None = None
    view: View | None = None
    fail_fast: bool = False

    def request(self) -> tuple[str, RunRequest]:
        """The run's whole name, and what it was asked to do. Raises UserError."""
        name = find_run(self.store, self.run)
        self.store.pull_run(name)
        return name, RunRequest.read(self.store, name)

    def options(self, asked: RunRequest) -> RunOptions:
        """How to run."""
        inline = asked.executor == "inline" if self.inline is None else self.inline
        cluster = self.cluster or asked.cluster
        return RunOptions("inline" if inline else "ray", cluster, asked.track, self.view, self.fail_fast, asked.smoke)


def rerun_run(again: Again, selection: Selection, overrides: tuple[str, ...]) -> Ran:
    """Run stages of an earlier run again, on that run's artifacts. Raises UserError."""
    name, asked = again.request()
    here = _go_where_it_ran(asked)
    pipeline = asked.pipeline(overrides)
    _tell_drift(name, asked)
    options = again.options(asked)
    result = run_pipeline(pipeline, again.store, options, selection, rerun_of=name)
    return Ran(pipeline, result, _arguments(again.store, pipeline, selection, options, here), asked.smoke)


def resume_run(again: Again) -> Ran:
    """Go on with a run: same file, same overrides, same selection. Raises UserError."""
    name, asked = again.request()
    here = _go_where_it_ran(asked)
    pipeline = asked.pipeline()
    _tell_drift(name, asked)
    selection = _still_to_force(again.store, name, asked, pipeline)
    options = replace(again.options(asked), fail_fast=asked.fail_fast)
    result = run_pipeline(pipeline, again.store, options, selection, rerun_of=asked.rerun_of, resumes=name)
    return Ran(pipeline, result, _arguments(again.store, pipeline, selection, options, here), asked.smoke)


def accept_stage(pipeline: Pipeline, store: Store, stage: str, reason: str) -> Iterator[str]:
    """Accept the changed code of a stage, or of all arms of a matrix; tells of each. Raises UserError."""
    if not reason.strip():
        raise UserError("--reason is empty", fix="say why the result is still right: it is kept with the artifact")
    names = arms(pipeline, [stage], "accept-drift")
    plan = make_plan(pipeline, store)
    wanted = [plan.steps[name] for name in names if len(names) == 1 or plan.steps[name].state != "cached"]
    if not wanted:
        raise UserError(f"there is nothing to accept: all arms of {stage} are cached")
    for step in wanted:
        record = accept(store, step, store.last(pipeline.name, step.spec.slug), reason.strip())
        yield f"{step.spec.name}: kept as run {record.made_by} made it, signed {record.who}"
        yield from (f"  {text}" for text in record.definitions)


def _still_to_force(store: Store, name: str, asked: RunRequest, pipeline: Pipeline) -> Selection:
    """The selection without those forced stages that were made before the run came to its end."""
    made: set[str] = set()
    run, request = name, asked
    while run:
        made |= finished(store, run)
        run = request.resumes
        request = RunRequest.read(store, run) if run else request
    force = tuple(stage for stage in arms(pipeline, asked.selection.force, "--force") if stage not in made)
    return replace(asked.selection, force=force)


def _go_where_it_ran(asked: RunRequest) -> Path:
    """Relative paths of a pipeline count from the directory in which it was started; the directory until now."""
    here = Path.cwd()
    if asked.directory and Path(asked.directory) != here:
        if Path(asked.directory).is_dir():
            print(f"in {asked.directory}, where the run was started", file=sys.stderr)
            os.chdir(asked.directory)
        else:
            print(f"{asked.directory}, where the run was started, is not here: paths count from here", file=sys.stderr)
    see_working_directory()
    return here


def _tell_drift(name: str, asked: RunRequest) -> None:
    if drift := asked.drift():
        print(f"{drift} since; this is the pipeline as run {name} had it", file=sys.stderr)


def _arguments(store: Store, pipeline: Pipeline, selection: Selection, options: RunOptions, here: Path) -> str:
    """What names the pipeline again for who is in the directory `here`."""
    file = Path(pipeline.file)
    name = str(file.resolve()) if file.is_file() and here != Path.cwd() else pipeline.file
    texts = pipeline.asked or pipeline.overrides
    same = [name, *(part for text in texts for part in ("--set", text)), *selection.arguments(), *options.arguments()]
    return naming(shlex.join(same), full_location(store.location) if options.smoke else store.location, store.default)
