"""Commands that go on from an earlier run, or vouch for what it made."""

from __future__ import annotations

from typing import Annotated

import typer

from pipelines.cli.commands.running import finish
from pipelines.cli.options import (
    FailFast,
    Force,
    From,
    Only,
    PipelineFile,
    Set,
    StoreAt,
    Until,
    ViewAs,
    load_pipeline,
    selection_of,
)

Run = Annotated[
    str, typer.Argument(metavar="RUN", help="The run: its name, a unique beginning of it, a tag, or `latest`.")
]
InlineAgain = Annotated[
    bool | None, typer.Option("--inline/--ray", help="In this process, or on Ray; by default as that run.")
]
ClusterAgain = Annotated[str | None, typer.Option("--cluster", help="Where to run; by default as that run.")]


def rerun(
    run_: Run,
    only: Only = None,
    from_: From = None,
    until: Until = None,
    force: Force = None,
    set_: Set = None,
    fail_fast: FailFast = False,
    store: StoreAt = ".regraft",
    cluster: ClusterAgain = None,
    inline: InlineAgain = None,
    view: ViewAs = "auto",
) -> None:
    """Run stages of an earlier run again, on the inputs they had there, with other parameters if you like."""
    from pipelines.cli.rerun import Again, rerun_run
    from pipelines.store import open_store

    opened = open_store(store)
    again = Again(opened, run_, cluster, inline, None if view == "auto" else view, fail_fast)
    ran = rerun_run(again, selection_of(only, from_, until, force), tuple(set_ or ()))
    finish(ran.pipeline, opened, ran.result, ran.arguments, quiet=view == "quiet", smoke=ran.smoke)


def resume(
    run_: Run,
    store: StoreAt = ".regraft",
    cluster: ClusterAgain = None,
    inline: InlineAgain = None,
    view: ViewAs = "auto",
) -> None:
    """Go on with a run that failed, was stopped or died: as it was asked for, from what is finished."""
    from pipelines.cli.rerun import Again, resume_run
    from pipelines.store import open_store

    opened = open_store(store)
    again = Again(opened, run_, cluster, inline, None if view == "auto" else view)
    ran = resume_run(again)
    finish(ran.pipeline, opened, ran.result, ran.arguments, quiet=view == "quiet", smoke=ran.smoke)


def accept_drift(
    pipeline: PipelineFile,
    stage: Annotated[str, typer.Argument(metavar="STAGE", help="The stage; of a matrix, an arm or all.")],
    reason: Annotated[str, typer.Option(help="Why the result is still right; it is kept with your name.")],
    set_: Set = None,
    store: StoreAt = ".regraft",
) -> None:
    """Keep the result of a stage whose code has changed without changing what it makes."""
    from pipelines.cli.rerun import accept_stage
    from pipelines.store import open_store

    for line in accept_stage(load_pipeline(pipeline, set_), open_store(store), stage, reason):
        print(line)
