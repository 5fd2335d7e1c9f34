"""Commands that show: runs, reports, methods, the schema."""

from __future__ import annotations

from typing import Annotated

import typer

from pipelines.cli.options import Json, StoreAt, SubmittedTo, print_json
from stages.errors import UserError


def status(
    run_: Annotated[str | None, typer.Argument(metavar="[RUN]", help="The run; the newest by default.")] = None,
    store: StoreAt = ".regraft",
    cluster: SubmittedTo = None,
    json_: Json = False,
) -> None:
    """Show a run's stages, or list the runs with `regraft status all`."""
    from pipelines.cli import history
    from pipelines.remote.locate import locate

    opened, name, submission = locate(store, run_, cluster)
    history.show_status(opened, name, submission, as_json=json_)


def logs(
    run_: Annotated[str | None, typer.Argument(metavar="[RUN]", help="The run; the newest by default.")] = None,
    stage: Annotated[str | None, typer.Argument(metavar="[STAGE]", help="One stage; all by default.")] = None,
    store: StoreAt = ".regraft",
    lines: Annotated[int, typer.Option("--lines", "-n", min=1, help="Lines from the end of each log.")] = 40,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the run, or the stage, is over.")] = False,
    cluster: SubmittedTo = None,
) -> None:
    """Print what stages wrote; with -f also what they go on to write, until the end and why it came."""
    from pipelines.cli import history
    from pipelines.remote.follow import follow as follow_run
    from pipelines.remote.locate import locate

    opened, name, submission = locate(store, run_, cluster)
    if not follow:
        history.show_logs(opened, name, stage, lines)
    elif not follow_run(opened, name or history.find_run(opened, None), stage, lines, submission):
        raise typer.Exit(1)


def report(
    run_: Annotated[str | None, typer.Argument(metavar="[RUN]", help="The run; the newest by default.")] = None,
    store: StoreAt = ".regraft",
    open_: Annotated[bool, typer.Option("--open", help="Open it in a browser.")] = False,
) -> None:
    """Print where a run's report is: one HTML page with models, graph, curves and every stage."""
    import webbrowser

    from pipelines.cli import history
    from pipelines.report.write import current_report
    from pipelines.store import open_store

    opened = open_store(store)
    file = current_report(opened, history.find_run(opened, run_))
    print(file)
    if open_ and not webbrowser.open(file.as_uri()):
        raise UserError("no browser can be opened here", fix=f"open {file} yourself, here or elsewhere: it is whole")


def compare(
    runs: Annotated[
        list[str], typer.Argument(metavar="RUN", help="Two or more: names, beginnings of names, or `latest`.")
    ],
    store: StoreAt = ".regraft",
    everything: Annotated[bool, typer.Option("--all", help="Show what is equal, too.")] = False,
    json_: Json = False,
) -> None:
    """Show parameters and metrics of runs side by side, and where they differ."""
    from pipelines.cli.compare import show_comparison
    from pipelines.store import open_store

    show_comparison(open_store(store), runs, everything=everything, as_json=json_)


def lineage(
    artifact: Annotated[
        str,
        typer.Argument(
            metavar="ARTIFACT|DIR", help="RUN:stage.output, a stage of the newest run, a tag, a key, or a directory."
        ),
    ],
    store: StoreAt = ".regraft",
    json_: Json = False,
) -> None:
    """Walk from an artifact, or an exported directory, to all it was made from: weights to data."""
    from pipelines.cli.lineage import show_lineage

    show_lineage(store, artifact, as_json=json_)


def methods(
    name: Annotated[str | None, typer.Argument(metavar="[METHOD]", help="A method, or MODULE:CLASS.")] = None,
    json_: Json = False,
) -> None:
    """List the methods, or document one: what it reads, makes, and each parameter."""
    from pipelines.cli import reference

    reference.show_methods(name, as_json=json_)


def schema() -> None:
    """Print the JSON Schema of pipeline files, for editors."""
    from pipelines.spec.schema import json_schema

    print_json(json_schema())
