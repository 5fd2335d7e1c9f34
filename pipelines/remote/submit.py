"""`regraft submit`: the driver of the run becomes a job of the cluster, and goes on when this machine leaves."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import yaml

from clusters.package import PackageError, collect
from clusters.profile import Profile, ProfileError, load_profile
from pipelines.planning.preflight import check_capacity
from pipelines.planning.selection import Selection, choose
from pipelines.remote.submission import Submission, connect
from pipelines.running.journal import new_run_name
from stages.errors import UserError

if TYPE_CHECKING:
    from clusters.jobs import Jobs
    from pipelines.spec.pipeline import Pipeline, StageSpec

CLUSTER_NAME: Final = "regraft-cluster.yaml"
NOT_HANDED_ON: Final = ("description", "dashboard", "env", "shared_disk", "regraft_installed")


@dataclass(frozen=True)
class Wish:
    """What is to be submitted."""

    pipeline: Pipeline
    file: Path
    cluster: str
    store: str
    selection: Selection
    arguments: tuple[str, ...]
    """Of `regraft run`, after the pipeline, but for the selection."""

    @property
    def may_run(self) -> list[StageSpec]:
        """The stages that may run there. Raises UserError for a selection that means nothing."""
        chosen = choose(self.pipeline, self.selection).chosen
        return [spec for name, spec in self.pipeline.stages.items() if name in chosen]


@dataclass(frozen=True)
class Submitted:
    """What came of it."""

    submission: Submission
    already: bool
    """Whether the very same was running there, so that nothing new was started."""
    digest: str
    """SHA-256 of the code that went along, in hex."""
    num_files: int
    num_bytes: int
    missing: tuple[str, ...]
    """Variables that the profile names and that are not set here."""


def submit(wish: Wish) -> Submitted:
    """Submit the run. Raises UserError for what cannot work, before anything is sent."""
    from clusters.jobs import JobError, capacity, elsewhere

    try:
        profile = load_profile(wish.cluster)
    except ProfileError as error:
        raise UserError(str(error)) from None
    jobs = connect(profile.dashboard)
    try:
        nodes = jobs.nodes()
        store = _reachable_store(wish.store, elsewhere(nodes), profile, wish.cluster)
        check_capacity(wish.may_run, capacity(nodes, profile), f"cluster {wish.cluster!r}")
        with tempfile.TemporaryDirectory() as directory:
            return _send(wish, profile, store, jobs, Path(directory))
    except PackageError as error:
        raise UserError(str(error), fix=error.fix) from None
    except JobError as error:
        raise UserError(str(error), fix=error.fix) from None


def _send(wish: Wish, profile: Profile, store: str, jobs: Jobs, directory: Path) -> Submitted:
    from clusters.jobs import Order

    package = collect(Path.cwd(), _added(wish, profile, directory), with_regraft=not profile.regraft_installed)
    command = _command(wish, store)
    digest = hashlib.sha256(json.dumps([package.digest, command]).encode()).hexdigest()
    missing = tuple(name for name in profile.env if name not in os.environ)
    same = _running(jobs, digest)
    submission = Submission(same or new_run_name(wish.pipeline.name), profile.dashboard, store, profile.env)
    submission.save()
    submitted = Submitted(submission, bool(same), package.digest, len(package.files), package.num_bytes, missing)
    if same:
        return submitted
    archive = directory / f"regraft-{package.digest[:24]}.zip"
    package.write(archive)
    metadata = {"regraft_digest": digest, "regraft_store": store, "regraft_pipeline": wish.pipeline.name}
    jobs.submit(Order(submission.run, command, archive, _own_variables(submission.run), submission.values(), metadata))
    return submitted


def _command(wish: Wish, store: str) -> str:
    """The driver's command line, seen from the unpacked package. The run's name is no part of it."""
    parts = ["run", _name(wish.file), "--cluster", CLUSTER_NAME, "--store", store, "--view", "lines", *wish.arguments]
    parts += wish.selection.arguments()
    return f"exec python -m pipelines.remote.driver {shlex.join(parts)}"


def _name(file: Path) -> str:
    """The pipeline file's name in the package: as it is below the working directory, or else beside it."""
    here, path = Path.cwd().resolve(), file.resolve()
    return path.relative_to(here).as_posix() if path.is_relative_to(here) else path.name


def _own_variables(run: str) -> dict[str, str]:
    from clusters.jobs import LONGEST_GRACE_SECONDS
    from clusters.leftovers import VARIABLE
    from pipelines.cli.session import NAME_VARIABLE

    return {
        VARIABLE: run,
        NAME_VARIABLE: run,
        "RAY_JOB_STOP_WAIT_TIME_S": str(LONGEST_GRACE_SECONDS),
        "RAY_TRAIN_V2_ENABLED": "1",
    }


def _added(wish: Wish, profile: Profile, directory: Path) -> Mapping[str, Path]:
    """The pipeline, and the cluster as the driver will see it: from inside."""
    cluster = directory / CLUSTER_NAME
    inside = profile.model_dump(mode="json", exclude_none=True, exclude=set(NOT_HANDED_ON)) | {"address": "auto"}
    cluster.write_text(yaml.safe_dump(inside, sort_keys=True), encoding="utf-8")
    return {_name(wish.file): wish.file.absolute(), CLUSTER_NAME: cluster}


def _running(jobs: Jobs, digest: str) -> str:
    """The name of a job that does the very same now; "" when there is none."""
    same = (job.name for job in jobs.list() if not job.ended and job.metadata.get("regraft_digest") == digest)
    return next(same, "")


def _reachable_store(store: str, others: list[str], profile: Profile, cluster: str) -> str:
    """The store as every node can name it."""
    if "://" in store and not store.startswith(("file://", "memory://")):
        return store
    if store.startswith("memory://"):
        raise UserError(f"the store {store} is the memory of one process", fix="--store s3://BUCKET/FOLDER")
    path = str(Path(store.removeprefix("file://")).absolute())
    if others and not profile.shared_disk:
        raise UserError(
            f"the store {path} is a path of this machine, and cluster {cluster!r} has nodes elsewhere: "
            + ", ".join(others[:5]),
            fix="--store s3://BUCKET/FOLDER; or, when all nodes see that very path, `shared_disk: true` in the profile",
        )
    return path
