"""Commands about where runs go on: sending one to a cluster, stopping one wherever it is, the clusters there are."""

from __future__ import annotations

from typing import Annotated

import typer

from pipelines.cli.options import (
    FailFast,
    Force,
    From,
    Json,
    Only,
    PipelineFile,
    Set,
    StoreAt,
    SubmittedTo,
    Track,
    Until,
    find_pipeline,
    load_pipeline,
    print_json,
    selection_of,
)
from stages.errors import UserError


def submit(
    pipeline: PipelineFile,
    cluster: Annotated[str, typer.Option(help="A shipped cluster profile, or a profile file.")],
    set_: Set = None,
    only: Only = None,
    from_: From = None,
    until: Until = None,
    force: Force = None,
    fail_fast: FailFast = False,
    store: StoreAt = ".regraft",
    track: Track = True,
    json_: Json = False,
) -> None:
    """Run a pipeline on a Ray cluster, as a job that goes on when this machine leaves."""
    from pipelines.cli.submitted import show_submitted
    from pipelines.remote.submit import Wish
    from pipelines.remote.submit import submit as send

    loaded = load_pipeline(pipeline, set_)
    selection = selection_of(only, from_, until, force)
    arguments = [part for text in loaded.overrides for part in ("--set", text)]
    arguments += [*(["--fail-fast"] if fail_fast else []), *([] if track else ["--no-track"])]
    submitted = send(Wish(loaded, find_pipeline(pipeline), cluster, store, selection, tuple(arguments)))
    show_submitted(submitted, as_json=json_)


def cancel(
    run_: Annotated[str, typer.Argument(metavar="RUN", help="The run: a beginning of its name, a tag, or `latest`.")],
    grace: Annotated[str, typer.Option(help="For running stages to save what they have: 30s, 5m, 0s.")] = "30s",
    store: StoreAt = ".regraft",
    cluster: SubmittedTo = None,
) -> None:
    """Stop a run, here or on a cluster: what is finished is kept, and nothing is left running."""
    from pipelines.cli.outcome import left_over
    from pipelines.remote.cancel import cancel as stop
    from pipelines.remote.locate import locate

    opened, name, submission = locate(store, run_, cluster)
    assert name is not None
    left = stop(opened, name, _seconds(grace), submission)
    print(left_over(left))
    if left:
        raise typer.Exit(1)
    print(f"go on with: {opened.command(f'resume {name}')}")


def clusters(json_: Json = False) -> None:
    """List the cluster profiles that come with regraft."""
    from clusters.profile import SHIPPED, load_profile, shipped

    profiles = {name: load_profile(name) for name in shipped()}
    if json_:
        print_json({name: profile.model_dump(mode="json") for name, profile in profiles.items()})
        return
    width = max(map(len, profiles))
    for name, profile in profiles.items():
        print(f"{name:<{width}}  {profile.description}")
    print(f"\nthe files are in {SHIPPED}; copy one and adjust it, and name the copy with --cluster FILE")


def _seconds(grace: str) -> float:
    from pipelines.spec.quantities import parse_duration

    if grace in ("0", "0s"):
        return 0.0
    try:
        return parse_duration(float(grace) if grace.replace(".", "", 1).isdigit() else grace)
    except ValueError as error:
        raise UserError(f"--grace: {error}", fix="for example --grace 5m, or 0s to stop it at once") from None
