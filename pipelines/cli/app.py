"""The command line: which commands there are.

Nothing heavy is imported at the top: `--help`, `validate`, `plan` and a fully cached `run` need neither torch nor ray
nor mlflow.
"""

from __future__ import annotations

import typer

from pipelines.cli.commands import keeping, looking, running

app = typer.Typer(
    help="Make new language models out of pretrained ones: run, rerun and follow pipelines of stages.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for command in (
    running.validate,
    running.plan,
    running.run,
    looking.status,
    looking.logs,
    looking.report,
    looking.compare,
    looking.methods,
    looking.schema,
    keeping.verify,
    keeping.ui,
    keeping.resync,
):
    app.command()(command)
