"""The command line: which commands there are.

Nothing heavy is imported at the top: `--help`, `validate`, `plan` and a fully cached `run` need neither torch nor ray
nor mlflow.
"""

from __future__ import annotations

from typing import Annotated

import typer

from pipelines.cli.commands import again, keeping, looking, remote, running

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _tell_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        print(f"regraft {version('regraft')}")
        raise typer.Exit


Version = Annotated[bool, typer.Option("--version", callback=_tell_version, is_eager=True, help="Show the version.")]


@app.callback()
def _regraft(version: Version = False) -> None:
    """Make new language models out of pretrained ones: run, rerun and follow pipelines of stages."""


for command in (
    running.validate,
    running.plan,
    running.run,
    again.rerun,
    again.resume,
    again.accept_drift,
    remote.submit,
    remote.cancel,
    remote.clusters,
    looking.status,
    looking.logs,
    looking.report,
    looking.compare,
    looking.lineage,
    looking.methods,
    looking.schema,
    keeping.verify,
    keeping.ui,
    keeping.resync,
    keeping.gc,
    keeping.tag,
    keeping.export,
):
    app.command()(command)
