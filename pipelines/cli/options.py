"""Arguments and options that several commands share, and how a command finds its pipeline."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, Literal

import typer

from pipelines.json_text import json_text
from stages.errors import UserError

if TYPE_CHECKING:
    from pipelines.planning.selection import Selection
    from pipelines.spec.pipeline import Pipeline

SHIPPED: Final = Path(__file__).resolve().parent.parent

PipelineFile = Annotated[str, typer.Argument(metavar="PIPELINE", help="A pipeline file, or the name of a shipped one.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="Replace one value of the file; budget=NAME, many."),
]
StoreAt = Annotated[
    str, typer.Option("--store", envvar="REGRAFT_STORE", help="Where artifacts live: path or fsspec URL.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Only = Annotated[
    list[str] | None, typer.Option(metavar="STAGE", help="Just this stage; above it nothing is made anew.")
]
From = Annotated[list[str] | None, typer.Option("--from", metavar="STAGE", help="This stage and all below it.")]
Until = Annotated[list[str] | None, typer.Option(metavar="STAGE", help="This stage and what it needs, no further.")]
Force = Annotated[list[str] | None, typer.Option(metavar="STAGE", help="Make this stage anew though it is cached.")]
Cluster = Annotated[str, typer.Option(help="A shipped cluster profile, or a profile file.")]
SubmittedTo = Annotated[
    str | None, typer.Option("--cluster", help="Where it was submitted, when that was from another machine.")
]
Inline = Annotated[bool, typer.Option("--inline", help="Run in this process, without Ray: for debugging.")]
Smoke = Annotated[bool, typer.Option("--smoke", help="All at its smallest, in a store apart: seconds a stage.")]
Track = Annotated[bool, typer.Option(help="Mirror the run in MLflow.")]
ViewAs = Annotated[Literal["auto", "live", "lines", "quiet"], typer.Option("--view", help="What to show meanwhile.")]
FailFast = Annotated[
    bool,
    typer.Option("--fail-fast/--keep-going", help="Start nothing more after a failure, or what does not need it."),
]


def load_pipeline(pipeline: str, overrides: list[str] | None) -> Pipeline:
    """The pipeline that `pipeline` means, with `overrides`. Raises UserError with every problem in it."""
    from pipelines.spec.budgets import with_budgets
    from pipelines.spec.load import load

    see_working_directory()
    file = find_pipeline(pipeline)
    asked = tuple(overrides or ())
    return replace(load(file, with_budgets(file, asked)), asked=asked)


def selection_of(
    only: list[str] | None,
    from_: list[str] | None = None,
    until: list[str] | None = None,
    force: list[str] | None = None,
) -> Selection:
    """The selection that these options say."""
    from pipelines.planning.selection import Selection

    return Selection(tuple(only or ()), tuple(from_ or ()), tuple(until or ()), tuple(force or ()))


def find_pipeline(name: str) -> Path:
    """The file that `name` means: a path, or a shipped pipeline. Raises UserError."""
    file = Path(name)
    if file.suffix in (".yaml", ".yml") or file.is_file():
        return file
    shipped = SHIPPED / f"{name}.yaml"
    if shipped.exists():
        return shipped
    known = ", ".join(sorted(path.stem for path in SHIPPED.glob("*.yaml")))
    raise UserError(f"no pipeline {name!r}", fix=f"give a .yaml file, or a shipped pipeline: {known}")


def see_working_directory() -> None:
    """Let `uses: my_module:MyStage` find modules in the working directory, as `python -m` would."""
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)


def print_json(value: object) -> None:
    """Print `value` as JSON."""
    print(json_text(value))
