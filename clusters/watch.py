"""Hears at once when a part of Ray that this process cannot do without dies. Ray itself says nothing for a minute.

An open connection ends when the process at its other end does; that is an event on every system, near or far.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable

CONNECT_SECONDS = 5.0


class Watch:
    """Calls `on_loss(name)` in a thread of its own when nobody answers at `address` (HOST:PORT) any more."""

    def __init__(self, name: str, address: str, on_loss: Callable[[str], None]) -> None:
        host, _, port = address.rpartition(":")
        self.name, self.place, self.on_loss = name, (host.strip("[]"), int(port)), on_loss
        self.over = threading.Event()
        self.connection: socket.socket | None = None
        threading.Thread(target=self._watch, name=f"watch-{name}", daemon=True).start()

    def close(self) -> None:
        """Stop watching."""
        self.over.set()
        if self.connection is not None:
            with contextlib.suppress(OSError):  # the other end may be gone
                self.connection.shutdown(socket.SHUT_RDWR)  # closing alone wakes no `recv` on Linux

    def _watch(self) -> None:
        while not self.over.is_set():
            # A server tired of a silent client closes too: only one that takes no new connection is gone.
            try:
                with socket.create_connection(self.place, CONNECT_SECONDS) as self.connection:
                    self.connection.settimeout(None)
                    self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
                    while not self.over.is_set() and self.connection.recv(4096):
                        pass
            except ConnectionRefusedError:
                break
            except OSError:
                self.over.wait(1.0)
        if not self.over.is_set():
            self.on_loss(self.name)
