"""Finds the run that a command names: in the store, or among those submitted from this machine."""

from __future__ import annotations

import os

from pipelines.hints import DEFAULT_STORE, STORE_VARIABLE
from pipelines.remote.submission import Submission, at_cluster, find
from pipelines.running.journal import list_runs, runs_called
from pipelines.store import Store, open_store


def locate(store: str, run: str | None, cluster: str | None = None) -> tuple[Store, str | None, Submission | None]:
    """The store with the run, the run's whole name (`all` and None stay), and how it was submitted, if it was.

    A submitted run brings its own store, unless another one is asked for. Raises UserError.
    """
    from pipelines.cli.history import find_run
    from pipelines.housekeeping.files import StoreFiles
    from pipelines.housekeeping.tags import run_tags

    submission = None if cluster else find(run)
    asked = store not in (DEFAULT_STORE, os.environ.get(STORE_VARIABLE))
    opened = open_store(submission.store if submission and not asked else store)
    if run is None or run == "all":
        return opened, run, None
    opened.pull_runs()
    here = runs_called(run, list_runs(opened.root), lambda: run_tags(StoreFiles(opened)))
    if cluster:
        name = find_run(opened, run) if here else run
        return opened, name, at_cluster(name, cluster, store)
    if submission and (run == submission.run or set(here) <= {submission.run}):
        return opened, submission.run, submission
    name = find_run(opened, run)
    return opened, name, None if submission else find(name)
