"""Which runs are at work in a store, and which keys they hold: what no housekeeping may touch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from pipelines.running.journal import has_ended
from pipelines.store import Store
from pipelines.store.holder import Holder
from pipelines.store.lease import Lease
from pipelines.store.store import KEY_LENGTH


@dataclass(frozen=True)
class Alive:
    """The runs at work, and who holds each key (its first `KEY_LENGTH` digits)."""

    runs: frozenset[str] = frozenset()
    keys: Mapping[str, str] = field(default_factory=dict)

    def holder(self, key: str) -> str:
        """Who holds the key, or ""."""
        return self.keys.get(key[:KEY_LENGTH], "")


def find_alive(store: Store) -> Alive:
    """Look who is at work now, on any machine."""
    store.pull_runs()
    leases = {lease.key[:KEY_LENGTH]: lease for lease in _leases(store)}
    runs = {mark.parent.name for mark in (store.root / "runs").glob("*/open")}
    runs = {run for run in runs if store.death_of(run) == ""}
    runs |= {lease.holder.run for lease in leases.values()} - {"unknown"}
    return Alive(frozenset(runs), {key: str(lease.holder) for key, lease in leases.items()})


def _leases(store: Store) -> Iterator[Lease]:
    """The leases that count, unless their run is known to be over: one that died may leave some."""
    return (lease for lease in store.leases.all() if not _is_over(store, lease.holder))


def _is_over(store: Store, holder: Holder) -> bool:
    return holder.is_gone or bool(store.death_of(holder.run)) or has_ended(store.run_directory(holder.run))
