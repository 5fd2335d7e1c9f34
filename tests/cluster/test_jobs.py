"""What the client of `submit` does with secrets that nobody takes, and how it tells what a dashboard answers."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import ray
from ray.experimental.internal_kv import _internal_kv_get, _internal_kv_put

from clusters import handover
from clusters.environment import prepare
from clusters.jobs import JobError, Jobs, Order
from clusters.profile import Profile

SECRET = "hf_not_to_be_seen"


class Dashboard(ThreadingHTTPServer):
    """Speaks as Ray's: jobs wait for ever, packages are kept."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.jobs: dict[str, dict] = {}
        self.kept: dict[str, bytes] = {}
        self.refuses = self.broken = ""

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Answer(BaseHTTPRequestHandler):
    server: Dashboard

    def do_GET(self) -> None:
        name = self.path.rpartition("/")[2]
        if self.path == "/api/version":
            self._send(200, {"version": "4", "ray_version": ray.__version__, "ray_commit": ""})
        elif self.path.startswith("/nodes"):
            self._send(503, f"first\n{self.server.broken}")
        elif self.path.startswith("/api/packages/"):
            self._send(200 if name in self.server.kept else 404, "")
        else:
            self._send(200, self.server.jobs[name]) if name in self.server.jobs else self._send(404, "no such job")

    def do_PUT(self) -> None:
        data = self._body()
        if self.server.broken:
            self._send(500, f"Traceback\nPackage data: {data!r}")
            return
        self.server.kept[self.path.rpartition("/")[2]] = data
        self._send(200, "")

    def do_POST(self) -> None:
        data = self._body()
        if self.path.endswith("/stop"):
            self._send(200, {"stopped": True})
        elif self.server.refuses:
            self._send(500, self.server.refuses)
        else:
            asked = json.loads(data)
            job = {"type": "SUBMISSION", "status": "PENDING", "entrypoint": asked["entrypoint"]}
            job |= {"submission_id": asked["submission_id"], "runtime_env": asked["runtime_env"]}
            if asked["submission_id"] in self.server.jobs:
                self._send(500, "already exists")
                return
            self.server.jobs[asked["submission_id"]] = job
            self._send(200, {"job_id": None, "submission_id": asked["submission_id"]})

    def log_message(self, *_: object) -> None:
        pass

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _send(self, status: int, content: dict | str) -> None:
        data = (content if isinstance(content, str) else json.dumps(content)).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@pytest.fixture
def dashboard(monkeypatch: pytest.MonkeyPatch) -> Iterator[Dashboard]:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    with Dashboard() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def order(name: str, package: Path) -> Order:
    return Order(name, "true", str(package), {}, {"HF_TOKEN": SECRET}, {})


def secrets(dashboard: Dashboard) -> list[bytes]:
    return [data for place, data in dashboard.kept.items() if "handover" in place and data]


def test_secrets_wait_for_the_driver_of_a_job_that_was_started(dashboard, tmp_path):
    jobs = Jobs(dashboard.address)
    jobs.submit(order("run", tmp_path))
    [kept] = secrets(dashboard)
    assert json.loads(kept) == {"HF_TOKEN": SECRET}
    jobs.submit(order("run", tmp_path))
    assert secrets(dashboard) == [kept], "those of the second submission, which is no job, are gone"
    jobs.stop("run")
    assert secrets(dashboard) == [], "a pending job that was stopped has no driver"


def test_secrets_do_not_outlive_a_submission_that_is_refused(dashboard, tmp_path):
    dashboard.refuses = "no room"
    with pytest.raises(JobError, match=r"refuses: .*no room"):
        Jobs(dashboard.address).submit(order("run", tmp_path))
    assert dashboard.kept
    assert secrets(dashboard) == []


def test_what_a_dashboard_answers_is_told_without_what_was_sent(dashboard, tmp_path):
    jobs = Jobs(dashboard.address)
    dashboard.broken = "upstream is gone"
    with pytest.raises(JobError, match=r"answers 503 Service Unavailable: upstream is gone$"):
        jobs.nodes()
    with pytest.raises(JobError, match="500 Internal Server Error for the variables to hand on") as caught:
        jobs.submit(order("run", tmp_path))
    assert SECRET not in str(caught.value)


def test_a_driver_takes_what_waits_once_and_stops_when_it_is_gone(monkeypatch):
    profile, place = Profile(cpus=1), handover.new_place()
    prepare(profile)
    from clusters.connection import connected

    assert connected(profile, "")
    try:
        monkeypatch.setenv("RAY_ADDRESS", ray.get_runtime_context().gcs_address)
        for name in ("HF_TOKEN", handover.NAMES_VARIABLE):
            monkeypatch.setenv(name, "")
        _internal_kv_put(f"gcs://{place}", handover.packed({"HF_TOKEN": SECRET}))
        monkeypatch.setenv(handover.VARIABLE, place)
        handover.receive()
        assert handover.handed_on() == {"HF_TOKEN": SECRET}
        handover.receive()  # nothing was left for it
        for kept in (None, handover.GONE):
            if kept is not None:
                _internal_kv_put(f"gcs://{place}", kept)
            monkeypatch.setenv(handover.VARIABLE, place)
            with pytest.raises(SystemExit, match="are gone from the memory of Ray's head: submit it again"):
                handover.receive()
        assert _internal_kv_get(f"gcs://{place}") is None
    finally:
        ray.shutdown()
