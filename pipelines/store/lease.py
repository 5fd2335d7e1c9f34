"""Leases: at most one run computes a key, wherever the runs are.

A lease is a file `leases/<key>/<token>`, made by an atomic create; the highest token is the one that counts. A run
that takes over from a dead one makes the next token, so the dead one, should it wake up, finds itself fenced out: the
token is checked right before a result is revealed. The heartbeat changes the file's stamp; a waiter counts how long the
stamp has not changed by its own clock, so the clocks of two machines need not agree.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from pipelines.store.holder import EXPIRY_SECONDS, Holder, silent_for
from stages.errors import RegraftError, UserError


class LeaseLostError(RegraftError):
    """Another run has taken over: what this attempt made is not published."""


class UnreachableError(UserError):
    """The store cannot be reached: now, or for ever."""


@dataclass(frozen=True)
class Lease:
    """The right to compute and publish one key, until a higher token exists."""

    key: str
    token: int
    nonce: str
    """Tells this lease from any other that ever had the token."""
    holder: Holder

    @classmethod
    def from_bytes(cls, key: str, token: int, data: bytes) -> Lease:
        """Read a lease file; one that a crash left unreadable belongs to nobody that is known."""
        nonce, _, holder = data.decode("utf-8", "replace").partition("\n")
        return cls(key, token, nonce, Holder.from_json(holder))

    def to_bytes(self) -> bytes:
        """The content of the lease file."""
        return f"{self.nonce}\n{self.holder.to_json()}\n".encode()


class LeaseFiles(Protocol):
    """Where lease files are kept."""

    def list_keys(self) -> list[str]:
        """The keys that have any."""

    def tokens(self, key: str) -> list[int]:
        """The tokens that exist for `key`."""

    def create(self, key: str, token: int, data: bytes) -> bool:
        """Make the file in one step; False when it exists."""

    def read(self, key: str, token: int) -> tuple[bytes, object] | None:
        """Content and stamp (changes with every heartbeat), or None when it is gone."""

    def beat(self, key: str, token: int, data: bytes) -> None:
        """Change the stamp. Raises FileNotFoundError when the file is gone."""

    def remove(self, key: str, token: int) -> None:
        """Remove the file, if it is there."""


class Leases:
    """The leases of a store."""

    def __init__(self, files: LeaseFiles) -> None:
        self.files = files

    def newest(self, key: str) -> tuple[Lease, object] | None:
        """The lease that counts, with its stamp; None when nobody holds the key."""
        while tokens := self.files.tokens(key):
            found = self.files.read(key, max(tokens))
            if found is not None:
                return Lease.from_bytes(key, max(tokens), found[0]), found[1]
        return None

    def all(self) -> Iterator[Lease]:
        """Every lease that counts."""
        for key in self.files.list_keys():
            if found := self.newest(key):
                yield found[0]

    def take(self, key: str, holder: Holder, after: int = 0) -> Lease | None:
        """The lease with the token after `after`, or None when another run was faster."""
        lease = Lease(key, after + 1, secrets.token_hex(8), holder)
        if not self.files.create(key, lease.token, lease.to_bytes()):
            return None
        if after:
            self.files.remove(key, after)
        return lease

    def holds(self, lease: Lease) -> bool:
        """Whether nobody has taken over."""
        if max(self.files.tokens(lease.key), default=0) != lease.token:
            return False
        found = self.files.read(lease.key, lease.token)
        return found is not None and found[0].startswith(lease.nonce.encode())

    def check(self, lease: Lease) -> None:
        """Raise LeaseLostError when another run has taken over, naming it."""
        if self.holds(lease):
            return
        newest = self.newest(lease.key)
        who = f"{newest[0].holder} has taken over" if newest else "another run has taken over and is done"
        raise LeaseLostError(f"this attempt was taken for dead, and {who}: what it made is discarded")

    def beat(self, lease: Lease) -> bool:
        """Tell that the holder lives; False when the lease is lost."""
        if not self.holds(lease):
            return False
        try:
            self.files.beat(lease.key, lease.token, lease.to_bytes())
        except FileNotFoundError:
            return False
        return True

    def release(self, lease: Lease) -> None:
        """Give the key free."""
        for token in self.files.tokens(lease.key):
            if token < lease.token:
                self.files.remove(lease.key, token)
        if self.holds(lease):
            self.files.remove(lease.key, lease.token)


class Claim:
    """A run's wish for the lease of one key: `attempt` until it comes, or until the result is there."""

    def __init__(self, leases: Leases, key: str, holder: Holder) -> None:
        self.leases, self.key, self.holder = leases, key, holder
        self.other: Lease | None = None
        """Who was in the way last."""
        self.taken_over = ""
        """From whom the lease was taken, and why; for the message."""
        self._stamp: object = None
        self._unchanged_since = time.monotonic()

    def attempt(self) -> Lease | None:
        """The lease, if it can be had now; otherwise `other` tells who has it."""
        found = self.leases.newest(self.key)
        if found is None:
            lease = self.leases.take(self.key, self.holder)
            if lease and self.other:
                self.taken_over = f"{self.other.holder} ended without this result"
            return lease
        other, stamp = found
        if (other.nonce, stamp) != self._stamp:
            self._stamp, self._unchanged_since = (other.nonce, stamp), time.monotonic()
        self.other = other
        reason = self._why_dead(other)
        lease = self.leases.take(self.key, self.holder, other.token) if reason else None
        if lease:
            self.taken_over = f"took over from {other.holder}: {reason}"
        return lease

    def _why_dead(self, other: Lease) -> str:
        """Why the holder is taken for dead; "" while it may live."""
        if other.holder.is_gone:
            return "its process is gone"
        silent = time.monotonic() - self._unchanged_since
        return silent_for(silent) if silent > EXPIRY_SECONDS else ""
