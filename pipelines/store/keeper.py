"""The heartbeat of a run: one daemon thread for its mark and for all leases it holds."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from functools import partial

from pipelines.store.holder import HEARTBEAT_SECONDS
from pipelines.store.lease import Lease, Leases, UnreachableError


class Keeper:
    """Keeps leases until they are released; the thread starts with the first one."""

    def __init__(self, leases: Leases, beat_run: Callable[[], None]) -> None:
        self.leases = leases
        self.beat_run = beat_run
        self.kept: dict[str, Lease] = {}
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin to beat, if that has not been done."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._beat_until_over, name="heartbeat", daemon=True)
            self._thread.start()

    def keep(self, lease: Lease) -> None:
        """Keep this lease alive."""
        self.kept[lease.key] = lease
        self.start()

    def release(self, key: str) -> None:
        """Give one lease back, if it is held."""
        if lease := self.kept.pop(key, None):
            with contextlib.suppress(UnreachableError):  # it ends by itself, for want of a heartbeat
                self.leases.release(lease)

    def close(self) -> None:
        """Give back whatever is held, and stop."""
        self._over.set()
        if self._thread is not None:
            self._thread.join(HEARTBEAT_SECONDS)
        for key in list(self.kept):
            self.release(key)

    def _beat_until_over(self) -> None:
        while not self._over.wait(HEARTBEAT_SECONDS):
            self.beat()

    def beat(self) -> None:
        """One beat of everything that is kept."""
        for beat in (self.beat_run, *(partial(self.leases.beat, lease) for lease in list(self.kept.values()))):
            # A store that cannot be reached now may be back for the next beat. If it stays away, the leases end, and
            # publishing what was made under them finds that out.
            with contextlib.suppress(Exception):
                beat()
