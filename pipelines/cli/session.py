"""`regraft run`: plan, preflight, run, record, tell."""

from __future__ import annotations

import os
import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from rich.console import Console

from clusters.executor import Executor, InlineExecutor, OnEvent
from pipelines import evidence
from pipelines.cli.tables import evaluation_tables, print_failures, result_table
from pipelines.cli.view import LineView, LiveView, QuietView
from pipelines.journal import Event, JournalWriter, close_dead_runs, new_run_name
from pipelines.plan import Plan, make_plan
from pipelines.preflight import check_capacity, preflight
from pipelines.run import Runner, RunResult, Surroundings
from pipelines.spec.pipeline import Pipeline, StageSpec
from pipelines.spec.quantities import format_duration
from pipelines.store import Store
from stages.errors import UserError

View = Literal["live", "lines", "quiet"]
MIRROR_PATIENCE_SECONDS = 60.0


@dataclass(frozen=True)
class RunOptions:
    """How to run; none of it changes a result."""

    executor: Literal["ray", "inline"] = "ray"
    cluster: str = "local"
    track: bool = True
    """Whether to mirror the run in MLflow."""
    view: View | None = None
    """None: live in a terminal, lines elsewhere."""


def run_pipeline(pipeline: Pipeline, store: Store, options: RunOptions) -> RunResult:
    """Plan and run `pipeline`. Raises UserError before any compute for what cannot work."""
    run = new_run_name(pipeline.name)
    about = {"run": run, "process": os.getpid(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
    with store.lock(about):
        close_dead_runs(store.root)
        store.clear_work()
        plan = make_plan(pipeline, store)
        if plan.cached:
            result = _record_run(plan, store, run, options, _no_executor, quiet=True)
        else:
            preflight(plan, store.root)
            result = _record_run(plan, store, run, options, _executor_maker(plan, options), quiet=False)
        store.sources.save()
    return result


def print_result(pipeline: Pipeline, store: Store, result: RunResult, arguments: str) -> None:
    """The summary a person reads at the end; `arguments` are those that name this pipeline again."""
    console = Console(highlight=False)
    states = list(result.states.values())
    console.print()
    console.print(result_table(pipeline, result))
    for table in evaluation_tables(pipeline, result):
        console.print()
        console.print(table)
    counts = [f"{states.count(state)} {state}" for state in dict.fromkeys(states)]
    headline = f"everything is cached: {len(states)} stages" if set(states) == {"cached"} else ", ".join(counts)
    print(f"\n{headline}, in {format_duration(result.seconds)}")
    if result.ok:
        print(_next_commands(pipeline, store, result, arguments))
    else:
        print_failures(console, pipeline, result, f"regraft run {arguments}")
        if page := _page(store, result.run):
            print(f"the run on one page: {page}")


def _next_commands(pipeline: Pipeline, store: Store, result: RunResult, arguments: str) -> str:
    numbers = [name for name, value in pipeline.params.items() if isinstance(value, (int, float))]
    name = next((f"params.{param}=…" for param in [*numbers, *pipeline.params]), "STAGE.PARAMETER=…")
    where = "" if store.root == Path.cwd() / ".regraft" else f" --store {shlex.quote(store.location)}"
    commands = {
        f"regraft plan {arguments} --set {name}": "what a change would run again, and why",
        f"regraft ui{where}": "the run in MLflow: parameters, curves, lineage",
        f"regraft logs {result.run}{where}": "what the stages printed",
    }
    if page := _page(store, result.run):
        commands[f"regraft report {result.run} --open{where}"] = f"the run on one page: {page}"
    width = max(len(text) for text in commands)
    return "\nnext:\n" + "\n".join(f"  {text:<{width}}   {use}" for text, use in commands.items())


def _page(store: Store, run: str) -> Path | None:
    """The report of `run`, seen from here; None when there is none."""
    page, here = store.run_directory(run) / "report.html", Path.cwd()
    if not page.exists():
        return None
    return page.relative_to(here) if page.is_relative_to(here) else page


def _record_run(
    plan: Plan, store: Store, run: str, options: RunOptions, make_executor: Any, *, quiet: bool
) -> RunResult:
    """Run the plan with a journal, a mirror and a view listening."""
    around = Surroundings(run, Path.cwd(), tuple(sys.path), {"git": evidence.git_state(Path.cwd())})
    with ExitStack() as stack:
        view = stack.enter_context(_view("quiet" if quiet else options.view, plan.pipeline))
        listeners = [view]
        if options.track and not quiet:
            listeners.append(stack.enter_context(_mirrored(store, run)))
        journal = JournalWriter(store.run_directory(run), listeners)
        stack.callback(journal.close)
        journal.write(_run_started(plan, store, around))
        result = Runner(plan, store, journal, around, make_executor).run()
        state = "done" if result.ok else "cancelled" if result.cancelled else "failed"
        end = {"event": "run-finished", "state": state, "seconds": round(result.seconds, 3)}
        try:
            if not quiet:
                _write_report(store, run, end)
        finally:
            journal.write(end)
    return result


def _write_report(store: Store, run: str, end: Event) -> None:
    """Make the page of the run, which is about to end; a run does not fail for want of it."""
    try:
        from pipelines.report.write import write_report

        write_report(store, run, end)
    # Whatever the page trips over, the results are there and the user is told.
    except Exception as problem:
        reason = " ".join(f"{type(problem).__name__}: {problem}".split())
        print(f"warning: the run has no report: {reason}; `regraft report {run}` tries again", file=sys.stderr)


@contextmanager
def _mirrored(store: Store, run: str) -> Iterator[Any]:
    """A listener that keeps MLflow up to date from another process, and waits for it at the end."""
    from pipelines.lineage.feed import Mirror

    mirror = Mirror.start(store.root, run)
    yield lambda _event: mirror.send("")
    problem = mirror.finish(MIRROR_PATIENCE_SECONDS)
    if problem:
        print(f"warning: MLflow does not have the whole run: {problem}", file=sys.stderr)


def _view(wanted: View | None, pipeline: Pipeline) -> Any:
    kind = wanted or ("live" if sys.stdout.isatty() else "lines")
    return {"live": LiveView, "lines": LineView}[kind](pipeline) if kind != "quiet" else QuietView()


def _executor_maker(plan: Plan, options: RunOptions) -> Any:
    from clusters.environment import prepare
    from clusters.profile import ProfileError, load_profile

    def make(on_event: OnEvent) -> Executor:
        from pipelines.worker import execute

        if options.executor == "inline":
            return InlineExecutor(execute, on_event)
        prepare(profile)
        from clusters.ray_executor import RayExecutor

        executor = RayExecutor(execute, on_event, profile)
        try:
            check_capacity(plan, executor.capacity(), f"cluster {options.cluster!r}")
        except UserError:
            executor.close()
            raise
        return executor

    try:
        profile = load_profile(options.cluster)
    except ProfileError as error:
        raise UserError(str(error)) from None
    return make


def _no_executor(_on_event: OnEvent) -> Executor:
    raise AssertionError("a run whose stages are all cached starts nothing")


def _run_started(plan: Plan, store: Store, around: Surroundings) -> dict[str, Any]:
    pipeline = plan.pipeline
    return {
        "event": "run-started",
        "run": around.run,
        "pipeline": pipeline.name,
        "description": pipeline.description,
        "file": pipeline.file,
        "store": store.location,
        "command": shlex.join(["regraft", *sys.argv[1:]]),
        "seed": pipeline.seed,
        "overrides": list(pipeline.overrides),
        "stages": [_stage_entry(spec) for spec in pipeline.stages.values()],
        "git": around.evidence["git"],
        "versions": evidence.versions(),
        "machine": evidence.machine(),
        "resolved": yaml.safe_dump(pipeline.resolved(), sort_keys=False, allow_unicode=True),
    }


def _stage_entry(spec: StageSpec) -> dict[str, Any]:
    everything, identity = spec.params.model_dump(mode="json"), spec.params.identity()
    return {
        "name": spec.name,
        "slug": spec.slug,
        "uses": spec.uses,
        "upstream": list(spec.upstream),
        "params": identity,
        "execution": {name: value for name, value in everything.items() if name not in identity},
        "resources": dict(vars(spec.resources)),
    }
