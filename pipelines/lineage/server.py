"""`serve` and `resync`: bring MLflow up to date with the store, and show it. MLflow is imported only when called.

The server listens on loopback unless another host is asked for; it has no login of its own.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.lineage.address import is_server, settle_environment, shown, tracking_uri
from pipelines.lineage.cursor import Cursor, identity, locked
from pipelines.running.journal import Journal, list_runs, run_directory
from stages.errors import RegraftError, StageError, UserError

if TYPE_CHECKING:
    from pipelines.lineage.tracker import Tracker

START_SECONDS = 90
STOP_SECONDS = 10


@dataclass(frozen=True)
class Outcome:
    """What `resync` did for one run."""

    run: str
    events: int = 0
    """Events brought to MLflow; 0 when it had them all."""
    problem: str = ""


def resync(store: Path) -> list[Outcome]:
    """Bring every run of `store` to MLflow, the oldest first, wherever its mirror stopped.

    A run that another process is mirroring now is left to it. Raises UserError when MLflow cannot be reached; a damaged
    journal is told in its outcome and does not keep the others back.
    """
    tracker = _connect(store)
    known = tracker.known_uids()
    return [_resync_one(store, run, tracker, known) for run in list_runs(store)]


def serve(store: Path, port: int = 5000, host: str = "127.0.0.1") -> None:
    """Bring MLflow up to date, show it at `port` of `host`, print where, and stay until Ctrl-C."""
    uri = tracking_uri(store)
    if not is_server(uri):
        _require_free(host, port)
    for outcome in resync(store):
        if outcome.problem:
            print(f"run {outcome.run} is not wholly in MLflow: {outcome.problem}", file=sys.stderr)
    path = _page(store)
    if is_server(uri):
        print(f"MLflow: {shown(uri).rstrip('/')}/{path}", flush=True)
        return
    try:
        with _server(store, uri, port, host) as process:
            _await_health(process, store, host, port)
            print(f"MLflow: http://{_reachable(host)}:{port}/{path}\nCtrl-C stops it.", flush=True)
            process.wait()
    except KeyboardInterrupt:
        return
    raise _server_failed(store)


def _connect(store: Path) -> Tracker:
    settle_environment()
    from mlflow.exceptions import MlflowException

    from pipelines.lineage.tracker import Tracker

    store.mkdir(parents=True, exist_ok=True)
    try:
        return Tracker(store)
    except MlflowException as problem:
        raise UserError(
            f"MLflow cannot be reached at {shown(tracking_uri(store))}: {' '.join(str(problem).split())[:200]}",
            fix="start the server, or unset MLFLOW_TRACKING_URI to use the database in the store",
        ) from problem


def _resync_one(store: Path, run: str, tracker: Tracker, known: set[str]) -> Outcome:
    from mlflow.exceptions import MlflowException

    from pipelines.lineage.mirror import RunMirror

    try:
        if _complete(store, run, tracker.uri, known):
            return Outcome(run)
        with locked(run_directory(store, run) / "mirror.lock", wait=False) as mine:
            return Outcome(run, RunMirror(store, run, tracker).catch_up()) if mine else Outcome(run)
    except (MlflowException, RegraftError) as problem:
        return Outcome(run, problem=" ".join(str(problem).split()))


def _complete(store: Path, run: str, uri: str, known: set[str]) -> bool:
    """Whether the cursor is at the end of the journal, and the database still the one it speaks of."""
    cursor = Cursor.load(run_directory(store, run))
    if cursor.tracking != uri or cursor.uid not in known:
        return False
    journal = Journal(run_directory(store, run) / "journal.jsonl")
    events = journal.read()
    return cursor.lines >= len(events) and cursor.uid == identity(events[0])


def _page(store: Path) -> str:
    """The experiment of the newest run; without `workflowType` a first visit shows MLflow's pages for agents."""
    mirrored = [Cursor.load(run_directory(store, run)).experiment for run in list_runs(store)]
    newest = next((experiment for experiment in reversed(mirrored) if experiment), "")
    return f"#/experiments/{newest}/runs?workflowType=machine_learning" if newest else "#/experiments"


def _require_free(host: str, port: int) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as problem:
            raise UserError(
                f"cannot listen on port {port} of {host}: {problem.strerror}", fix=f"choose another: --port {port + 1}"
            ) from problem


@contextmanager
def _server(store: Path, uri: str, port: int, host: str) -> Iterator[subprocess.Popen[bytes]]:
    """The server with all its processes, ended on the way out, also when this process is asked to terminate."""
    artifacts = (store.resolve() / "mlflow-artifacts").as_uri()
    command = [
        sys.executable,
        "-m",
        "mlflow",
        "server",
        "--backend-store-uri",
        uri,
        "--default-artifact-root",
        artifacts,
    ]
    command += ["--host", host, "--port", str(port), "--workers", "1"]
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with (store / "mlflow-server.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)
    try:
        yield process
    finally:
        _stop(process)
        signal.signal(signal.SIGTERM, before)


def _stop(process: subprocess.Popen[bytes]) -> None:
    for kind in (signal.SIGTERM, signal.SIGKILL):
        try:
            # The server starts workers, in the session that was made for it.
            os.killpg(process.pid, kind)
            process.wait(STOP_SECONDS)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue


def _await_health(process: subprocess.Popen[bytes], store: Path, host: str, port: int) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(f"http://{_reachable(host)}:{port}/health", timeout=5):
                return
        except (urllib.error.URLError, OSError):
            if process.poll() is not None:
                break
            time.sleep(0.1)
    raise _server_failed(store)


def _server_failed(store: Path) -> StageError:
    return StageError("the MLflow server ended by itself", fix=f"see {store / 'mlflow-server.log'}")


def _reachable(host: str) -> str:
    shown_host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"[{shown_host}]" if ":" in shown_host else shown_host
