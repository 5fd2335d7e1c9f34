"""The commands. Each reads its arguments and calls one function; nothing here knows how things are done.

Nothing heavy is imported at the top: `--help`, `validate`, `plan` and a fully cached `run` need neither torch nor ray
nor mlflow.
"""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Annotated, Final, Literal

import typer

from stages.errors import UserError

app = typer.Typer(
    help="Make new language models out of pretrained ones: run, rerun and follow pipelines of stages.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
SHIPPED: Final = Path(__file__).resolve().parent.parent

PipelineFile = Annotated[str, typer.Argument(metavar="PIPELINE", help="A pipeline file, or the name of a shipped one.")]
Set = Annotated[list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="Replace one value of the file.")]
StoreAt = Annotated[
    str, typer.Option("--store", envvar="REGRAFT_STORE", help="Where artifacts live: path or fsspec URL.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command()
def validate(pipeline: PipelineFile, set_: Set = None, json_: Json = False) -> None:
    """Check a pipeline file; tells every problem with its line."""
    loaded = _load(pipeline, set_)
    if json_:
        _print_json(loaded.resolved())
    else:
        print(f"{loaded.file}: fine, {len(loaded.stages)} stages")


@app.command()
def plan(pipeline: PipelineFile, set_: Set = None, store: StoreAt = ".regraft", json_: Json = False) -> None:
    """Tell what a run would do with each stage, and why."""
    from pipelines.plan import make_plan
    from pipelines.store import open_store

    made = make_plan(_load(pipeline, set_), open_store(store))
    if json_:
        _print_json(
            [
                {"stage": step.spec.name, "state": step.state, "reasons": step.reasons, "key": step.key}
                for step in made.steps.values()
            ]
        )
        return
    from rich.console import Console

    from pipelines.cli.tables import plan_table

    Console(highlight=False).print(plan_table(made))


@app.command()
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

    loaded = _load(pipeline, set_)
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


@app.command()
def status(
    run_: Annotated[str | None, typer.Argument(metavar="[RUN]", help="The run; the newest by default.")] = None,
    store: StoreAt = ".regraft",
    json_: Json = False,
) -> None:
    """Show a run's stages, or list the runs with `regraft status all`."""
    from pipelines.cli import history
    from pipelines.store import open_store

    history.show_status(open_store(store), run_, as_json=json_)


@app.command()
def logs(
    run_: Annotated[str | None, typer.Argument(metavar="[RUN]", help="The run; the newest by default.")] = None,
    stage: Annotated[str | None, typer.Argument(metavar="[STAGE]", help="One stage; all by default.")] = None,
    store: StoreAt = ".regraft",
    lines: Annotated[int, typer.Option("--lines", "-n", min=1, help="Lines from the end of each log.")] = 40,
) -> None:
    """Print what stages wrote."""
    from pipelines.cli import history
    from pipelines.store import open_store

    history.show_logs(open_store(store), run_, stage, lines)


@app.command()
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


@app.command()
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


@app.command()
def methods(
    name: Annotated[str | None, typer.Argument(metavar="[METHOD]", help="A method, or MODULE:CLASS.")] = None,
    json_: Json = False,
) -> None:
    """List the methods, or document one: what it reads, makes, and each parameter."""
    from pipelines.cli import reference

    reference.show_methods(name, as_json=json_)


@app.command()
def schema() -> None:
    """Print the JSON Schema of pipeline files, for editors."""
    from pipelines.spec.schema import json_schema

    _print_json(json_schema())


@app.command()
def verify(store: StoreAt = ".regraft") -> None:
    """Read every byte of every artifact again and compare it with what was published."""
    from pipelines.cli import history
    from pipelines.store import open_store

    if not history.verify(open_store(store)):
        raise typer.Exit(1)


@app.command()
def ui(
    store: StoreAt = ".regraft",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port on this machine.")] = 5000,
    host: Annotated[str, typer.Option(help="Address to listen on; loopback unless asked otherwise.")] = "127.0.0.1",
) -> None:
    """Open the runs in MLflow, on this machine only."""
    from pipelines.lineage.server import serve
    from pipelines.store import open_store

    serve(open_store(store).root, port, host)


@app.command()
def resync(store: StoreAt = ".regraft") -> None:
    """Bring MLflow up to date with the store."""
    from pipelines.lineage.server import resync as bring
    from pipelines.store import open_store

    for outcome in bring(open_store(store).root):
        print(f"{outcome.run}: {outcome.problem or f'{outcome.events} events brought'}")


def _load(pipeline: str, overrides: list[str] | None):
    from pipelines.spec.load import load

    _see_working_directory()
    return load(find_pipeline(pipeline), tuple(overrides or ()))


def find_pipeline(name: str) -> Path:
    """The file that `name` means: a path, or a shipped pipeline. Raises UserError."""
    file = Path(name)
    if file.suffix in (".yaml", ".yml") or file.exists():
        return file
    shipped = SHIPPED / f"{name}.yaml"
    if shipped.exists():
        return shipped
    known = ", ".join(sorted(path.stem for path in SHIPPED.glob("*.yaml")))
    raise UserError(f"no pipeline {name!r}", fix=f"give a .yaml file, or a shipped pipeline: {known}")


def _see_working_directory() -> None:
    """Let `uses: my_module:MyStage` find modules beside the pipeline, as `python -m` would."""
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)


def _print_json(value: object) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False))
