"""A Ray cluster of two nodes on this machine, on two of its loopback addresses, with a token; gone for certain."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil
import pytest

HEAD, OTHER = "127.0.0.2", "127.0.0.3"
MARK = "REGRAFT_TEST_NODE"


class TwoNodes:
    """Starts with the head; `start_other` adds the second node. Both are ended, with all they started, by `close`."""

    def __init__(self, head_cpus: int) -> None:
        self.name = secrets.token_hex(4)
        self.folder = Path(tempfile.mkdtemp(prefix="rg"))  # short: Ray's sockets are below it
        self.token = self.folder / "token"
        self.token.write_text(secrets.token_hex(16))
        self.port, self.dashboard_port = _free_port(), _free_port()
        self._start(
            "head",
            *("--head", f"--node-ip-address={HEAD}", f"--port={self.port}", f"--num-cpus={head_cpus}"),
            *("--dashboard-host=127.0.0.1", f"--dashboard-port={self.dashboard_port}"),
        )

    def start_other(self, cpus: int) -> None:
        self._start("other", f"--address={HEAD}:{self.port}", f"--node-ip-address={OTHER}", f"--num-cpus={cpus}")

    @property
    def dashboard(self) -> str:
        return f"http://127.0.0.1:{self.dashboard_port}"

    @property
    def variables(self) -> dict[str, str]:
        """What a client needs."""
        return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(self.token)}

    def profile(self, **more: object) -> str:
        lines = {"address": "auto", "dashboard": self.dashboard, **more}
        return "".join(f"{name}: {value}\n" for name, value in lines.items())

    def logs_with(self, text: str) -> list[Path]:
        """Files that Ray wrote and that have `text` in them."""
        files = [path for path in self.folder.rglob("*") if path.is_file() and path != self.token]
        return [path for path in files if text.encode() in path.read_bytes()]

    def kill(self, node: str) -> None:
        """Kill every process of a node at once, as when its power is cut."""
        for process in self._processes(node):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()

    def close(self) -> None:
        for _ in range(3):
            for node in ("other", "head"):
                self.kill(node)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _processes(self, node: str) -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get(MARK) == f"{self.name}-{node}":
                    found.append(process)
        return found

    def _start(self, node: str, *arguments: str) -> None:
        ports = ["--min-worker-port=0", "--max-worker-port=0", "--object-store-memory=80000000"]
        command = [str(Path(sys.executable).with_name("ray")), "start", *arguments, *ports, "--disable-usage-stats"]
        command += [f"--temp-dir={self.folder / node}", f"--dashboard-agent-listen-port={_free_port()}"]
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        own = {**self.variables, MARK: f"{self.name}-{node}", "PATH": path, "OMP_NUM_THREADS": "1"}
        own |= {"HOME": str(self.folder), "RAY_health_check_period_ms": "500", "RAY_health_check_timeout_ms": "5000"}
        environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        done = subprocess.run(command, capture_output=True, text=True, env={**environment, **own}, timeout=120)
        if done.returncode:
            self.close()
            pytest.skip(f"Ray cannot start the node {node!r} here: {(done.stdout + done.stderr)[-500:]}")


def require_two_nodes() -> None:
    """Skip where Ray cannot do it."""
    if sys.platform != "linux":
        pytest.skip("two nodes of Ray on one machine need Linux's loopback addresses")
    if importlib.util.find_spec("aiohttp_cors") is None:
        pytest.skip("Ray has no dashboard, which takes jobs: pip install 'ray[default]'")


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]
