"""What a person reads at the end of a run."""

from __future__ import annotations

from pathlib import Path

from pipelines.cli.console import new_console
from pipelines.cli.tables import figure_tables, print_failures, result_table
from pipelines.running.result import RunResult
from pipelines.spec.pipeline import Pipeline
from pipelines.spec.quantities import format_duration
from pipelines.store import Store


def print_result(pipeline: Pipeline, store: Store, result: RunResult, arguments: str, *, smoke: bool = False) -> None:
    """The summary; `arguments` are those that name this pipeline again. Figures of a smoke run are not compared."""
    console = new_console()
    console.print()
    console.print(result_table(pipeline, result))
    for table in [] if smoke else figure_tables(pipeline, result):
        console.print()
        console.print(table)
    print(f"\n{_headline(result)}, in {format_duration(result.seconds)}")
    if result.cancelled:
        print(left_over(result.left))
    if result.ok and smoke:
        print(f"the pipeline holds together; at this size its figures mean nothing\n\nnext:\n  regraft run {arguments}")
    elif result.ok:
        print(_next_commands(pipeline, store, result, arguments))
    else:
        print_failures(console, pipeline, store, result, store.command(f"resume {result.run}"))
        print(f"after a change of the file: regraft run {arguments}{' --smoke' if smoke else ''}")
        if page := _page(store, result.run):
            print(f"the run on one page: {page}")


def left_over(left: list[str]) -> str:
    """What a cancelled run left, in words."""
    if not left:
        return "nothing is left: no actor, no placement group, no process of this run"
    return "still there: " + ", ".join(left)


def _headline(result: RunResult) -> str:
    states = list(result.states.values())
    if set(states) == {"cached"}:
        return f"everything is cached: {len(states)} stages"
    words = {state: "not chosen" if state == "left" else state for state in dict.fromkeys(states)}
    return ", ".join(f"{states.count(state)} {word}" for state, word in words.items())


def _next_commands(pipeline: Pipeline, store: Store, result: RunResult, arguments: str) -> str:
    numbers = [name for name, value in pipeline.params.items() if isinstance(value, (int, float))]
    name = next((f"params.{param}=…" for param in [*numbers, *pipeline.params]), "STAGE.PARAMETER=…")
    commands = {
        f"regraft plan {arguments} --set {name}": "what a change would run again, and why",
        store.command(f"rerun {result.run} --from STAGE --set STAGE.PARAMETER=…"): "again from one stage on",
        store.command("ui"): "the run in MLflow: parameters, curves, lineage",
        store.command(f"logs {result.run}"): "what the stages printed",
    }
    if page := _page(store, result.run):
        commands[store.command(f"report {result.run} --open")] = f"the run on one page: {page}"
    width = max(len(text) for text in commands)
    return "\nnext:\n" + "\n".join(f"  {text:<{width}}   {use}" for text, use in commands.items())


def _page(store: Store, run: str) -> Path | None:
    """The report of `run`, seen from here; None when there is none."""
    page, here = store.run_directory(run) / "report.html", Path.cwd()
    if not page.exists():
        return None
    return page.relative_to(here) if page.is_relative_to(here) else page
