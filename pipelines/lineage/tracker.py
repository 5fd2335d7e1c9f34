"""The calls to MLflow that the mirror makes. Each may be repeated: what is already there is found by its tags.

MLflow gives every run and model a random id, so a mirror that died between making one and writing its id down would
make a second. Hence all of them carry `regraft.uid`, and are looked up by it when a mirror starts.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from mlflow.entities import LoggedModel, Metric, Param, Run, RunTag, ViewType
from mlflow.exceptions import MlflowException
from mlflow.tracing.client import TracingClient
from mlflow.tracking import MlflowClient

from pipelines.lineage.address import is_server, tracking_uri
from pipelines.lineage.cursor import locked

MOST_PARAMS = 100
MOST_METRICS = 1000
PARENT = "run"
"""The name of the parent run among the runs of one uid; a stage's run is named `slug#attempt`."""

Item = TypeVar("Item")


class Tracker:
    """A connection to MLflow; makes the database of the store when it is missing."""

    def __init__(self, store: Path) -> None:
        # Alembic tells of every migration step of a fresh database.
        logging.getLogger("alembic").setLevel(logging.WARNING)
        self.uri = tracking_uri(store)
        self._store = store.resolve()
        # Two processes that migrate the same SQLite file at once break it.
        with locked(self._store / "mlflow.lock"):
            self.client = MlflowClient(tracking_uri=self.uri)
            self.client.get_experiment_by_name("Default")
        self.traces = TracingClient(self.uri)

    def experiment(self, name: str, description: str) -> str:
        """The id of a pipeline's experiment; made when missing, brought back when deleted."""
        with locked(self._store / "mlflow.lock"):
            found = self.client.get_experiment_by_name(name)
            if found is None:
                return self._create_experiment(name, description)
        if found.lifecycle_stage != "active":
            self.client.restore_experiment(found.experiment_id)
        if description and found.tags.get("mlflow.note.content") != description:
            self.client.set_experiment_tag(found.experiment_id, "mlflow.note.content", description)
        return found.experiment_id

    def _create_experiment(self, name: str, description: str) -> str:
        tags = {"mlflow.experimentKind": "custom_model_development", "regraft.kind": "pipeline"}
        tags |= {"mlflow.note.content": description} if description else {}
        root = None if is_server(self.uri) else (self._store / "mlflow-artifacts" / _folder(name)).as_uri()
        try:
            return self.client.create_experiment(name, artifact_location=root, tags=tags)
        except MlflowException as problem:
            # On a server another machine may have made it in the meantime.
            if problem.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            found = self.client.get_experiment_by_name(name)
            assert found is not None
            return found.experiment_id

    def runs_of(self, experiment: str, uid: str) -> dict[str, Run]:
        """The MLflow runs of one of our runs, by `slug#attempt` or `run`."""
        runs = self._search_runs([experiment], f"tags.`regraft.uid` = '{uid}'", ViewType.ACTIVE_ONLY)
        return {_role(run.data.tags): run for run in runs}

    def known_uids(self) -> set[str]:
        """The uids of all runs that MLflow has, those deleted in its pages among them."""
        runs = self._search_runs(self.experiments(), "tags.`regraft.level` = 'run'", ViewType.ALL)
        return {run.data.tags.get("regraft.uid", "") for run in runs}

    def stage_runs(self, run: str) -> dict[str, Run]:
        """The MLflow runs of the stages of run `run`, in whichever experiment, by cache key."""
        where = f"tags.`regraft.run` = '{_quoted(run)}' and tags.`regraft.level` = 'stage'"
        runs = self._search_runs(self.experiments(), where, ViewType.ACTIVE_ONLY)
        return {found.data.tags.get("regraft.key", ""): found for found in runs}

    def parent_of(self, run: str) -> Run | None:
        """The MLflow run of the pipeline's run `run`, in whichever experiment; None when it is not there (yet)."""
        where = f"tags.`regraft.run` = '{_quoted(run)}' and tags.`regraft.level` = 'run'"
        return next(self._search_runs(self.experiments(), where, ViewType.ACTIVE_ONLY), None)

    def models(self, tag: str, value: str) -> list[LoggedModel]:
        """Logged models that carry a tag, in whichever experiment, oldest first."""
        where = f"tags.`{tag}` = '{_quoted(value)}'"
        ids = self.experiments()
        if not ids:
            return []
        pages = _pages(lambda token: self.client.search_logged_models(ids, filter_string=where, page_token=token))
        return sorted(pages, key=lambda model: (model.creation_timestamp, model.model_id))

    def experiments(self) -> list[str]:
        """The experiments that hold pipelines; asked each time, for other runs add to them."""
        where = "tags.`regraft.kind` = 'pipeline'"
        pages = _pages(lambda token: self.client.search_experiments(filter_string=where, page_token=token))
        return [found.experiment_id for found in pages]

    def log(
        self,
        run: str,
        *,
        params: Mapping[str, str] | None = None,
        metrics: Sequence[Metric] = (),
        tags: Mapping[str, str] | None = None,
    ) -> None:
        """Write params, metrics and tags in calls of the size MLflow takes."""
        all_params = [Param(name, value) for name, value in (params or {}).items()]
        all_tags = [RunTag(name, value) for name, value in (tags or {}).items()]
        rest = iter(metrics)
        while True:
            some_params, all_params = all_params[:MOST_PARAMS], all_params[MOST_PARAMS:]
            some_tags, all_tags = all_tags[:MOST_PARAMS], all_tags[MOST_PARAMS:]
            some = list(islice(rest, MOST_METRICS - 2 * MOST_PARAMS))
            if not (some_params or some_tags or some):
                return
            self.client.log_batch(run, metrics=some, params=some_params, tags=some_tags)

    def _search_runs(self, experiments: list[str], where: str, view: int) -> Iterator[Run]:
        if not experiments:
            return iter(())
        return _pages(lambda token: self.client.search_runs(experiments, where, view, page_token=token))


def _pages(fetch: Callable[[str | None], Any]) -> Iterator[Any]:
    token: str | None = None
    while True:
        page = fetch(token)
        yield from page
        token = page.token
        if not token:
            return


def _role(tags: Mapping[str, str]) -> str:
    return PARENT if tags["regraft.level"] == "run" else f"{tags['regraft.slug']}#{tags['regraft.attempt']}"


def _quoted(value: str) -> str:
    """MLflow's filters know no escape, so a quote in a value could only ever miss."""
    return value.replace("'", "")


def _folder(name: str) -> str:
    return "".join(c if c.isalnum() or c in "-_." else "-" for c in name).lstrip(".") or "pipeline"
