"""Finds the run that a command names: in the store, or among those submitted from this machine."""

from __future__ import annotations

from pipelines.journal import list_runs
from pipelines.remote.submission import Submission, at_cluster, find
from pipelines.store import Store, open_store

DEFAULT_STORE = ".regraft"


def locate(store: str, run: str | None, cluster: str | None = None) -> tuple[Store, str | None, Submission | None]:
    """The store with the run, the run's whole name (`all` and None stay), and how it was submitted, if it was.

    A submitted run brings its own store, unless another one is asked for. Raises UserError.
    """
    from pipelines.cli.history import find_run

    submission = at_cluster(run, cluster, store) if cluster and run else find(run)
    if submission and store == DEFAULT_STORE and not cluster:
        store = submission.store
    opened = open_store(store)
    if run is None or run == "all":
        return opened, run, None
    if submission is None:
        name = find_run(opened, run)
        return opened, name, find(name)
    opened.pull_runs()
    here = [name for name in list_runs(opened.root) if name.startswith(run) and name != submission.run]
    return (
        (opened, find_run(opened, run), None)
        if here and run != submission.run
        else (opened, submission.run, submission)
    )
