"""Hearing that a part of Ray is gone, and no longer listening."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable

from clusters.watch import Watch


def becomes(true: Callable[[], bool]) -> bool:
    end = time.monotonic() + 10
    while not true() and time.monotonic() < end:
        time.sleep(0.01)
    return true()


def listening(name: str) -> bool:
    return any(thread.name == f"watch-{name}" for thread in threading.enumerate())


def test_a_loss_is_heard_and_an_end_of_watching_is_none():
    lost: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        watches = {name: Watch(name, f"127.0.0.1:{port}", lost.append) for name in ("kept", "closed")}
        connections = [server.accept()[0] for _ in watches]
        assert becomes(lambda: watches["closed"].connection is not None)
        watches["closed"].close()
        assert becomes(lambda: not listening("closed"))
        assert listening("kept")
    for connection in connections:
        connection.close()
    assert becomes(lambda: lost == ["kept"])
    watches["kept"].close()


def test_closing_at_once_is_closing():
    with socket.create_server(("127.0.0.1", 0)) as server:
        for _ in range(20):
            Watch("brief", f"127.0.0.1:{server.getsockname()[1]}", lambda _: None).close()
        assert becomes(lambda: not listening("brief"))
