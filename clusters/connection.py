"""How a run comes to its Ray: it starts one on this machine, or joins one; and on what of it the run then depends.

Call `clusters.environment.prepare` before importing this module: Ray reads its environment then.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any

import ray

from clusters import leftovers
from clusters.lost import ClusterLostError
from clusters.package import ROOT
from clusters.profile import Profile

OBJECT_STORE_BYTES = 256 << 20
"""Artifacts travel through the store, never through Ray: its object store carries events and results only."""
JOB_CONFIG_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Set by Ray for the driver of a submitted job, whose environment Ray hands on to all workers."""


def connected(profile: Profile, run: str) -> bool:
    """As `_connect`. Raises ClusterLostError when there is no Ray to be had."""
    try:
        return _connect(profile, run)
    # Ray has no type for this: what it raises when a part of it does not start in time is a bare Exception.
    except Exception as error:
        done = "started on this machine" if profile.address == "local" else f"joined at {profile.address}"
        if profile.address == "local" and run:
            leftovers.kill_processes(run)
        raise ClusterLostError(f"Ray could not be {done}: {' '.join(str(error).split())}") from error


def _connect(profile: Profile, run: str) -> bool:
    """Join or start the cluster; returns whether it was started here."""
    if ray.is_initialized():
        return False
    common: dict[str, Any] = {"log_to_driver": False, "logging_level": "error", "namespace": "regraft"}
    if profile.address != "local":
        inherited = JOB_CONFIG_VARIABLE in os.environ or not run
        environment = None if inherited else {"env_vars": {leftovers.VARIABLE: run}}
        ray.init(address=profile.address, runtime_env=environment, **common)
        return False
    with _importable_by_workers(), leftovers.marked(run):
        ray.init(
            address="local",
            num_cpus=profile.cpus,
            num_gpus=profile.gpus,
            _memory=profile.memory,
            include_dashboard=False,
            object_store_memory=OBJECT_STORE_BYTES,
            **common,
        )
    return True


def parts() -> dict[str, str]:
    """The parts of Ray without which this process waits in vain, and where they listen."""
    context = ray.get_runtime_context()
    if ray.util.client.ray.is_connected():
        return {}  # a ray:// address: its own connection ends with an error when the other end is gone
    parts = {"the head of the Ray cluster": context.gcs_address}
    for node in ray.nodes():
        if node["NodeID"] == context.get_node_id():
            parts["Ray's process on this node (raylet)"] = f"{node['NodeManagerAddress']}:{node['NodeManagerPort']}"
    return parts


@contextlib.contextmanager
def own_sigterm() -> Iterator[None]:
    """Keep this process's answer to SIGTERM: Ray puts one of its own in its place, which exits at once."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def _importable_by_workers() -> Iterator[None]:
    """Let the processes of a local Ray, which inherit the environment, import what this process can."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys([str(ROOT), *sys.path, *filter(None, [before])]))
    try:
        yield
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before
