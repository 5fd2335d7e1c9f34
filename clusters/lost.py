"""The end of a cluster: apart from all else, so that a run that needs no cluster loads nothing of one."""

from __future__ import annotations

import _thread
import contextlib
import signal
import threading


class ClusterLostError(Exception):
    """The cluster itself is gone, and all work on it; the message says what died."""


class Loss:
    """The news that a cluster is gone: told once, by any thread, to the main thread, wherever that is."""

    def __init__(self) -> None:
        self.what = ""
        """What has died; "" while all lives."""
        self._lock, self._told = threading.Lock(), threading.Event()

    def tell(self, part: str) -> None:
        """Interrupt the main thread: Ray would let it wait on. A run in a shell's background ignores Ctrl-C."""
        with self._lock:
            if self.what:
                return  # the parts of a cluster die together
            self.what = f"{part} has died"
        try:
            _thread.interrupt_main(signal.SIGINT if callable(signal.getsignal(signal.SIGINT)) else signal.SIGTERM)
        finally:
            self._told.set()

    def check(self, patience_seconds: float = 0) -> None:
        """Raise ClusterLostError when the cluster is gone; the interrupt that tells so comes before, not after.

        With patience it waits so long for the news, which may be on its way.
        """
        if not self.what and patience_seconds:
            self._told.wait(patience_seconds)
        if self.what:
            with contextlib.suppress(KeyboardInterrupt):
                self._told.wait()
            raise ClusterLostError(self.what) from None
