"""The jobs of a Ray cluster, through its dashboard, with token authentication: the client's side of `submit`.

Ray is imported when a cluster is first spoken to. A job outlives the connection that submitted it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from clusters import handover
from clusters.executor import Capacity
from clusters.profile import Profile
from stages.errors import first_line

ENDED: Final = frozenset({"STOPPED", "SUCCEEDED", "FAILED"})
LONGEST_GRACE_SECONDS: Final = 3600
"""What Ray itself waits after SIGTERM before it kills a job: longer than any grace of ours, which ends first."""
NOT_YET: Final = "No available agent"
"""What a cluster says whose head is up and whose process for jobs is still starting."""
START_SECONDS: Final = 60.0
ADDRESS_VARIABLES: Final = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS")
TOKEN_FIX: Final = (
    "put the cluster's token into ~/.ray/auth_token or RAY_AUTH_TOKEN here; on a cluster without one: "
    "`ray get-auth-token --generate`, and RAY_AUTH_MODE=token on every node before `ray start`"
)


class JobError(Exception):
    """What the cluster refused, or why it cannot be reached; `fix` says what to do."""

    def __init__(self, message: str, fix: str) -> None:
        super().__init__(message)
        self.fix = fix


@dataclass(frozen=True)
class Job:
    """One job as the cluster tells it."""

    name: str
    status: str
    """`PENDING`, `RUNNING`, `STOPPED`, `SUCCEEDED` or `FAILED`."""
    message: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)
    package: str = ""
    """Where the cluster has its code."""
    handover: str = ""
    """Where its secrets wait, or did."""

    @property
    def ended(self) -> bool:
        """Whether it will not change any more."""
        return self.status in ENDED


@dataclass(frozen=True)
class Order:
    """A job to be started."""

    name: str
    command: str
    package: Path | str
    """The zip that is unpacked into its working directory: a file here, or one that the cluster has."""
    variables: Mapping[str, str]
    """Set for the job and all its workers; anybody who may see the cluster's dashboard sees them."""
    secrets: Mapping[str, str] = field(repr=False)
    """Handed to the driver out of sight of dashboard and logs."""
    metadata: Mapping[str, str]


class Jobs:
    """The jobs of the cluster at `dashboard`. Every method raises JobError."""

    def __init__(self, dashboard: str) -> None:
        self.dashboard = dashboard
        os.environ.setdefault("RAY_AUTH_MODE", "token")
        from ray.job_submission import JobSubmissionClient

        logging.getLogger("ray.dashboard.modules.dashboard_sdk").setLevel(logging.ERROR)
        with self._told(), _without(ADDRESS_VARIABLES):
            self.client = JobSubmissionClient(dashboard)

    def submit(self, order: Order) -> None:
        """Start a job. A second submission under one name is no second job."""
        environment = {"working_dir": str(order.package), "env_vars": dict(order.variables)}
        with self._told():
            if not order.secrets:
                self._start(order, environment)
                return
            environment["env_vars"][handover.VARIABLE] = place = handover.new_place()
            self._leave(place, handover.packed(order.secrets))
            try:
                self._start(order, environment)
            finally:
                job = self._find(order.name)
                if job is None or job.handover != place:
                    self._leave(place, handover.GONE)

    def _start(self, order: Order, environment: dict[str, Any]) -> None:
        name, until = order.name, time.monotonic() + START_SECONDS
        while True:
            try:
                self.client.submit_job(
                    entrypoint=order.command,
                    submission_id=name,
                    runtime_env=environment,
                    metadata=dict(order.metadata),
                )
                return
            except RuntimeError as error:
                if self._find(name) is not None:
                    return
                if time.monotonic() > until or NOT_YET not in str(error):
                    raise
            time.sleep(1.0)

    def find(self, name: str) -> Job | None:
        """The job called `name`, or None."""
        with self._told():
            return self._find(name)

    def list(self) -> list[Job]:
        """All jobs that were submitted."""
        with self._told():
            return [_job(details) for details in self.client.list_jobs() if details.submission_id]

    def log(self, name: str) -> str:
        """What the job has printed."""
        with self._told():
            return self.client.get_job_logs(name)

    def stop(self, name: str) -> None:
        """Send SIGTERM to the job's processes; one that has none yet gets none, and no variables."""
        with self._told():
            job = self._find(name)
            self.client.stop_job(name)
            if job is not None and job.status == "PENDING" and job.handover:
                self._leave(job.handover, handover.GONE)

    def nodes(self) -> list[Mapping[str, Any]]:
        """What Ray's node process says of each living node."""
        with self._told():
            answer = self.client._do_request("GET", "/nodes?view=summary")  # Ray has no public way
            answer.raise_for_status()
            summary = answer.json()["data"]["summary"]
        return [node["raylet"] for node in summary if node["raylet"].get("state", "ALIVE") == "ALIVE"]

    def _leave(self, place: str, data: bytes) -> None:
        """Leave `data` in the memory of the head under the name `place`, over what is there."""
        answer = self.client._do_request("PUT", f"/api/packages/gcs/{place}", data=data)  # only packages have a method
        if not answer.ok:  # the text of the answer may begin with the data
            raise RuntimeError(f"{answer.status_code} {answer.reason} for the variables to hand on")

    def _find(self, name: str) -> Job | None:
        answer = self.client._do_request("GET", f"/api/jobs/{name}")  # 404 told from failures
        return None if answer.status_code == 404 else _job(self.client.get_job_info(name))

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """Turn what Ray raises into what a user can act on; no message repeats what was sent."""
        import ray.exceptions
        import requests

        try:
            yield
        except ray.exceptions.AuthenticationError as error:
            raise JobError(f"{self.dashboard} does not let us in: {first_line(error)}", TOKEN_FIX) from None
        except requests.exceptions.HTTPError as error:
            answer = f"{error.response.status_code} {error.response.reason}: {_last_line(error.response.text)}"
            raise JobError(f"{self.dashboard} answers {answer}", "see Ray's log on its head, or the proxy's") from None
        except (ConnectionError, requests.exceptions.RequestException):
            fix = "start the cluster, forward its port (docs/clusters.md), or set `dashboard` in the cluster profile"
            raise JobError(f"no Ray dashboard answers at {self.dashboard}", fix) from None
        except (RuntimeError, ValueError, KeyError) as error:
            told = f"the cluster at {self.dashboard} refuses: {_last_line(str(error))}"
            raise JobError(told, "see Ray's log on its head") from None


def capacity(nodes: list[Mapping[str, Any]], profile: Profile) -> Capacity:
    """The most that the cluster with these nodes can give, those included that its autoscaler may start."""
    totals = [node.get("resourcesTotal", {}) for node in nodes]
    most = {name: max((total.get(name, 0.0) for total in totals), default=0.0) for name in ("CPU", "GPU", "memory")}
    total = {name: sum(total.get(name, 0.0) for total in totals) for name in ("CPU", "GPU")}
    return profile.widest(Capacity(most["CPU"], most["GPU"], most["memory"], total["CPU"], total["GPU"]))


def elsewhere(nodes: list[Mapping[str, Any]]) -> list[str]:
    """Names of the nodes that are not on this machine: their sockets are not here."""
    return [node["nodeManagerHostname"] for node in nodes if not Path(node["rayletSocketName"]).is_socket()]


def _job(details: Any) -> Job:
    environment = details.runtime_env or {}
    return Job(
        details.submission_id,
        str(getattr(details.status, "value", details.status)),
        details.message or "",
        details.metadata or {},
        environment.get("working_dir", ""),
        environment.get("env_vars", {}).get(handover.VARIABLE, ""),
    )


def _last_line(text: str) -> str:
    """The last line of a traceback, say; cut short."""
    return (text.strip().splitlines() or [""])[-1][:500]


@contextlib.contextmanager
def _without(names: tuple[str, ...]) -> Iterator[None]:
    """Without these variables, which Ray would prefer to the address that it is given."""
    before = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(before)
