"""Removes what `gc.survey` found may go. Can be cut off at any moment, and started again.

The manifest goes first, after its record was written: from then on the artifact does not exist, and what is left of its
files is found by the next survey. A run that starts meanwhile stops the sweep: what it may read was not weighed. What
a run that was weighed has begun to make meanwhile is left.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from pipelines.housekeeping.alive import Alive, find_alive
from pipelines.housekeeping.catalogue import Catalogue
from pipelines.housekeeping.gc import Policy, survey
from pipelines.housekeeping.leftovers import Item
from pipelines.lineage.cursor import locked
from pipelines.store import Store
from stages.errors import UserError


@dataclass(frozen=True)
class Swept:
    """What a sweep did."""

    removed: tuple[Item, ...]
    stopped_by: str = ""
    """The run that started meanwhile, so that the rest was left."""

    @property
    def freed(self) -> int:
        """Bytes."""
        return sum(item.bytes for item in self.removed)


def collect(store: Store, policy: Policy) -> tuple[list[Item], Swept]:
    """Survey the store and remove what may go. Raises UserError beside another gc."""
    with locked(store.root / "gc.lock", wait=False) as mine:
        if not mine:
            raise UserError(f"another gc is at work in {store.location}", fix="wait for it")
        weighed = find_alive(store)  # before anything is read: a run that starts from here on stops the sweep
        catalogue = Catalogue.read(store)
        items = survey(catalogue, policy, weighed)
        return items, sweep(catalogue, items, weighed)


def sweep(catalogue: Catalogue, items: Sequence[Item], weighed: Alive) -> Swept:
    """Remove those of `items` that go, as long as no run but those `weighed` is at work, and nobody holds them now."""
    removed: list[Item] = []
    for item in items:
        if not item.goes:
            continue
        alive = find_alive(catalogue.store)
        if news := alive.runs - weighed.runs:
            return Swept(tuple(removed), min(news))
        if not alive.holder(item.key):
            _remove(catalogue, item)
            removed.append(item)
    return Swept(tuple(removed))


def _remove(catalogue: Catalogue, item: Item) -> None:
    if item.manifest is not None:
        catalogue.forget(item.manifest, time.time())
        catalogue.files.remove(f"{item.path}/manifest.json")
    catalogue.files.remove_tree(item.path)
