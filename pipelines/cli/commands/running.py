"""Commands that check, plan and run pipelines."""

from __future__ import annotations

import shlex
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from pipelines.cli.options import (
    Cluster,
    FailFast,
    Force,
    From,
    Inline,
    Json,
    Only,
    PipelineFile,
    Set,
    Smoke,
    StoreAt,
    Track,
    Until,
    ViewAs,
    load_pipeline,
    print_json,
    selection_of,
)

if TYPE_CHECKING:
    from pipelines.running.result import RunResult
    from pipelines.spec.pipeline import Pipeline
    from pipelines.store import Store


def validate(pipeline: PipelineFile, set_: Set = None, json_: Json = False) -> None:
    """Check a pipeline file; tells every problem with its line."""
    loaded = load_pipeline(pipeline, set_)
    if json_:
        print_json(loaded.resolved())
    else:
        print(f"{loaded.file}: fine, {len(loaded.stages)} stages")


def plan(
    pipeline: PipelineFile,
    set_: Set = None,
    only: Only = None,
    from_: From = None,
    until: Until = None,
    force: Force = None,
    smoke: Smoke = False,
    why: Annotated[bool, typer.Option("--why", help="Tell every reason in full.")] = False,
    store: StoreAt = ".regraft",
    cluster: Cluster = "local",
    json_: Json = False,
) -> None:
    """Tell what a run would do with each stage, why, and how long it may take."""
    from clusters.profile import ProfileError, load_profile
    from pipelines.cli.planning import impossible, plan_json
    from pipelines.planning.durations import expect
    from pipelines.planning.plan import make_plan
    from stages.errors import UserError

    loaded, opened = _asked_for(pipeline, set_, store, smoke=smoke)
    made = make_plan(loaded, opened, selection_of(only, from_, until, force))
    try:
        problems = impossible(made, load_profile(cluster), cluster)
    except ProfileError as error:
        raise UserError(str(error)) from None
    if json_:
        print_json(plan_json(made, expect(made, opened), problems))
    else:
        from pipelines.cli.planned import print_plan

        print_plan(made, expect(made, opened), problems, why=why)


def run(
    pipeline: PipelineFile,
    set_: Set = None,
    only: Only = None,
    from_: From = None,
    until: Until = None,
    force: Force = None,
    fail_fast: FailFast = False,
    smoke: Smoke = False,
    store: StoreAt = ".regraft",
    cluster: Cluster = "local",
    inline: Inline = False,
    track: Track = True,
    view: ViewAs = "auto",
) -> None:
    """Run a pipeline: only the stages whose result is not there yet."""
    from pipelines.cli.session import RunOptions, run_pipeline

    selection = selection_of(only, from_, until, force)
    loaded, opened = _asked_for(pipeline, set_, store, smoke=smoke)
    shown = None if view == "auto" else view
    options = RunOptions("inline" if inline else "ray", cluster, track, shown, fail_fast, smoke)
    result = run_pipeline(loaded, opened, options, selection)
    same = [
        pipeline,
        *(part for text in set_ or () for part in ("--set", text)),
        *selection.arguments(),
        *options.arguments(),
    ]
    same += ["--store", store] if store != ".regraft" else []
    finish(loaded, opened, result, shlex.join(same), quiet=view == "quiet", smoke=smoke)


def _asked_for(pipeline: str, overrides: list[str] | None, store: str, *, smoke: bool) -> tuple[Pipeline, Store]:
    """The pipeline and its store; with `smoke` the small version of both."""
    from pipelines.planning.smoke import smoke_location
    from pipelines.store import open_store

    loaded = load_pipeline(pipeline, overrides)
    if not smoke:
        return loaded, open_store(store)
    return _smallest(loaded), open_store(smoke_location(store))


def _smallest(pipeline: Pipeline) -> Pipeline:
    from pipelines.planning.smoke import full_size, smoke_version

    if names := full_size(pipeline):
        print(f"without a smoke profile, and run as the file says: {', '.join(names)}", file=sys.stderr)
    return smoke_version(pipeline)


def finish(
    pipeline: Pipeline, store: Store, result: RunResult, arguments: str, *, quiet: bool, smoke: bool = False
) -> None:
    """Tell how a run ended, by the exit code and, unless it went well and is to be quiet, in print."""
    if not quiet or not result.ok:
        from pipelines.cli.outcome import print_result

        print_result(pipeline, store, result, arguments, smoke=smoke)
    if not result.ok:
        users_fault = any(failure.users_fault for failure in result.failures.values())
        raise typer.Exit(130 if result.cancelled else 2 if users_fault else 1)
