"""Commands that check, plan and run pipelines."""

from __future__ import annotations

import shlex
from typing import Annotated, Literal

import typer

from pipelines.cli.options import Json, PipelineFile, Set, StoreAt, load_pipeline, print_json


def validate(pipeline: PipelineFile, set_: Set = None, json_: Json = False) -> None:
    """Check a pipeline file; tells every problem with its line."""
    loaded = load_pipeline(pipeline, set_)
    if json_:
        print_json(loaded.resolved())
    else:
        print(f"{loaded.file}: fine, {len(loaded.stages)} stages")


def plan(pipeline: PipelineFile, set_: Set = None, store: StoreAt = ".regraft", json_: Json = False) -> None:
    """Tell what a run would do with each stage, and why."""
    from pipelines.plan import make_plan
    from pipelines.store import open_store

    made = make_plan(load_pipeline(pipeline, set_), open_store(store))
    if json_:
        print_json(
            [
                {"stage": step.spec.name, "state": step.state, "reasons": step.reasons, "key": step.key}
                for step in made.steps.values()
            ]
        )
        return
    from rich.console import Console

    from pipelines.cli.tables import plan_table

    Console(highlight=False).print(plan_table(made))


def run(
    pipeline: PipelineFile,
    set_: Set = None,
    store: StoreAt = ".regraft",
    cluster: Annotated[str, typer.Option(help="A shipped cluster profile, or a profile file.")] = "local",
    inline: Annotated[bool, typer.Option("--inline", help="Run in this process, without Ray: for debugging.")] = False,
    track: Annotated[bool, typer.Option(help="Mirror the run in MLflow.")] = True,
    view: Annotated[Literal["auto", "live", "lines", "quiet"], typer.Option(help="What to show meanwhile.")] = "auto",
) -> None:
    """Run a pipeline: only the stages whose result is not there yet."""
    from pipelines.cli.session import RunOptions, print_result, run_pipeline
    from pipelines.store import open_store

    loaded = load_pipeline(pipeline, set_)
    opened = open_store(store)
    same = [pipeline, *(part for text in set_ or () for part in ("--set", text))]
    same += ["--store", store] if store != ".regraft" else []
    options = RunOptions("inline" if inline else "ray", cluster, track, None if view == "auto" else view)
    result = run_pipeline(loaded, opened, options)
    if view != "quiet" or not result.ok:
        print_result(loaded, opened, result, shlex.join(same))
    if not result.ok:
        users_fault = any(failure.users_fault for failure in result.failures.values())
        raise typer.Exit(130 if result.cancelled else 2 if users_fault else 1)
