"""`regraft run`: plan, preflight, run, record, tell."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pipelines import evidence
from pipelines.planning.plan import Plan, make_plan
from pipelines.planning.selection import EVERYTHING, Selection
from pipelines.running.journal import Event, JournalWriter, close_dead_runs, new_run_name
from pipelines.running.origin import RunRequest, earlier_artifacts
from pipelines.running.result import RunResult
from pipelines.running.run import Runner
from pipelines.running.task import Surroundings
from pipelines.spec.pipeline import Pipeline, StageSpec
from pipelines.store import Store
from stages.errors import RegraftError, UserError

if TYPE_CHECKING:
    from clusters.executor import Executor, OnEvent

View = Literal["live", "lines", "quiet"]
MIRROR_PATIENCE_SECONDS = 60.0
NAME_VARIABLE = "REGRAFT_RUN_NAME"
"""Set by `regraft submit` for the driver, so that who submitted knows the run's name before it starts."""


@dataclass(frozen=True)
class RunOptions:
    """How to run; none of it changes a result."""

    executor: Literal["ray", "inline"] = "ray"
    cluster: str = "local"
    track: bool = True
    """Whether to mirror the run in MLflow."""
    view: View | None = None
    """None: live in a terminal, lines elsewhere."""
    fail_fast: bool = False
    """Whether nothing more starts after the first failure; otherwise a failure stops only what depends on it."""
    smoke: bool = False
    """Whether the pipeline has been made small; for the record."""

    def arguments(self) -> list[str]:
        """Those that plan and run for the same cluster again."""
        return ["--cluster", self.cluster] if self.executor == "ray" and self.cluster != "local" else []


def run_pipeline(
    pipeline: Pipeline,
    store: Store,
    options: RunOptions,
    selection: Selection = EVERYTHING,
    *,
    rerun_of: str = "",
    resumes: str = "",
) -> RunResult:
    """Plan and run `pipeline`. Raises UserError before any compute for what cannot work."""
    run = os.environ.pop(NAME_VARIABLE, "") or new_run_name(pipeline.name)
    request = RunRequest(
        file=pipeline.file,
        text=pipeline.text,
        overrides=pipeline.overrides,
        selection=selection,
        rerun_of=rerun_of,
        resumes=resumes,
        directory=str(Path.cwd()),
        executor=options.executor,
        cluster=options.cluster,
        track=options.track,
        fail_fast=options.fail_fast,
        smoke=options.smoke,
    )
    for dead in close_dead_runs(store):
        _end_leftovers(dead)
    store.clear_work()
    plan = make_plan(pipeline, store, selection, earlier_artifacts(store, request))
    if plan.cached:
        result = _record_run(plan, store, run, options, request, _no_executor, quiet=True)
    else:
        from pipelines.planning.preflight import preflight

        preflight(plan, store.root)
        result = _record_run(plan, store, run, options, request, _executor_maker(plan, options, run), quiet=False)
    store.sources.save()
    return result


def _record_run(
    plan: Plan,
    store: Store,
    run: str,
    options: RunOptions,
    request: RunRequest,
    make_executor: Any,
    *,
    quiet: bool,
) -> RunResult:
    """Run the plan with a journal, a mirror and a view listening."""
    around = Surroundings(run, Path.cwd(), tuple(sys.path), {"git": evidence.git_state(Path.cwd())})
    with ExitStack() as stack:
        request.write(store.run_directory(run))
        listeners: list[Any] = []
        if not quiet and options.view != "quiet":
            listeners.append(stack.enter_context(_view(options.view, plan.pipeline)))
        if options.track and not quiet:
            listeners.append(stack.enter_context(_mirrored(store, run)))
        stack.enter_context(store.sharing(run))
        journal = JournalWriter(store.run_directory(run), listeners)
        stack.callback(journal.close)
        journal.write(_run_started(plan, store, around, request))
        try:
            result = Runner(plan, store, journal, around, make_executor, fail_fast=options.fail_fast).run()
        except RegraftError as error:
            journal.write({"event": "run-finished", "state": "failed", "seconds": 0.0, "reason": error.message})
            raise
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
        again = store.command(f"report {run}")
        print(f"warning: the run has no report: {reason}; `{again}` tries again", file=sys.stderr)


@contextmanager
def _mirrored(store: Store, run: str) -> Iterator[Any]:
    """A listener that keeps MLflow up to date from another process, and waits for it at the end."""
    from pipelines.lineage.feed import Mirror

    mirror = Mirror(store.root, run, store.command("resync"))
    yield lambda _event: mirror.wake()
    problem = mirror.finish(MIRROR_PATIENCE_SECONDS)
    if problem:
        print(f"warning: MLflow does not have the whole run: {problem}", file=sys.stderr)


def _view(wanted: View | None, pipeline: Pipeline) -> Any:
    from pipelines.cli.view import LineView, LiveView

    kind = wanted or ("live" if sys.stdout.isatty() else "lines")
    return {"live": LiveView, "lines": LineView}[kind](pipeline)


def _executor_maker(plan: Plan, options: RunOptions, run: str) -> Any:
    from clusters.environment import prepare
    from clusters.executor import InlineExecutor
    from clusters.profile import ProfileError, load_profile
    from pipelines.planning.preflight import check_capacity

    def make(on_event: OnEvent) -> Executor:
        from pipelines.running.worker import execute

        if options.executor == "inline":
            return InlineExecutor(execute, on_event)
        prepare(profile)
        from clusters.ray_executor import RayExecutor

        executor = RayExecutor(execute, on_event, profile, run)
        try:
            check_capacity(plan.may_run, profile.widest(executor.capacity()), f"cluster {options.cluster!r}")
        except UserError:
            executor.close()
            raise
        return executor

    try:
        profile = load_profile(options.cluster)
    except ProfileError as error:
        raise UserError(str(error)) from None
    return make


def _end_leftovers(dead: str) -> None:
    """End what the driver of a local Ray left on this machine when it was killed."""
    from clusters.leftovers import kill_processes

    if killed := kill_processes(dead):
        print(f"run {dead} was killed; ended what it had left: {', '.join(killed)}", file=sys.stderr)


def _no_executor(_on_event: OnEvent) -> Executor:
    raise AssertionError("a run whose stages are all cached starts nothing")


def _run_started(plan: Plan, store: Store, around: Surroundings, request: RunRequest) -> dict[str, Any]:
    pipeline = plan.pipeline
    asked = {"selection": request.selection.as_json() if request.selection else None}
    asked |= {"rerun_of": request.rerun_of, "resumes": request.resumes}
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
        **{name: value for name, value in asked.items() if value},
        "stages": [_stage_entry(spec, left=plan.steps[name].state == "left") for name, spec in pipeline.stages.items()],
        "git": around.evidence["git"],
        "versions": evidence.versions(),
        "machine": evidence.machine(),
        "resolved": pipeline.resolved(),
    }


def _stage_entry(spec: StageSpec, *, left: bool) -> dict[str, Any]:
    everything, identity = spec.params.model_dump(mode="json"), spec.params.identity()
    return {
        "name": spec.name,
        "slug": spec.slug,
        "uses": spec.uses,
        "upstream": list(spec.upstream),
        "params": identity,
        "execution": {name: value for name, value in everything.items() if name not in identity},
        "resources": dict(vars(spec.resources)),
        **({"state": "left"} if left else {}),
    }
