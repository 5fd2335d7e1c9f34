"""Stages of a run and their leases: a stage starts when its run holds the lease of its key.

A stage whose key another run computes waits here, without any resource of the cluster, and adopts that run's result
when it comes; when that run fails, ends or dies, the stage gets its turn.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final

from pipelines.planning.plan import Step
from pipelines.store import Manifest, Store
from pipelines.store.holder import Holder
from pipelines.store.keeper import Keeper
from pipelines.store.lease import Claim, Lease, UnreachableError

LOOK_SECONDS: Final = 1.0
"""Time between two looks at leases that others hold: no event can tell of another machine."""
LOOK_SHARE: Final = 0.1
"""At most this part of the time goes into looking, however many stages wait."""


@dataclass(frozen=True)
class Turn:
    """A stage may start under `lease`, or has the result `manifest` that another run made."""

    step: Step
    attempt: int
    lease: Lease | None = None
    manifest: Manifest | None = None


@dataclass
class Wish:
    """A stage that waits for its lease."""

    step: Step
    attempt: int
    claim: Claim
    lease: Lease | None = None
    """Held already, while the store cannot be asked for the result."""
    told: str = ""
    """The last message about who is in the way."""


class Claims:
    """The leases of one run: those it holds and those it waits for."""

    def __init__(self, store: Store, run: str, say: Callable[[str, str], None]) -> None:
        self.store, self.run, self.say = store, run, say
        self.keeper = Keeper(store.leases, partial(store.beat_run, run))
        self.wishes: list[Wish] = []
        self.due = 0.0
        """When to look again, by the monotonic clock."""

    def ask(self, step: Step, attempt: int) -> Turn | None:
        """The turn of a stage, or None when it has to wait."""
        assert step.key is not None
        self.keeper.start()
        claim = self.store.claim(step.key, Holder.here(self.run, step.spec.name))
        wish = Wish(step, attempt, claim)
        turn = self._try_or_wait(wish)
        if turn is None:
            self.due = self.due if self.wishes else time.monotonic() + LOOK_SECONDS
            self.wishes.append(wish)
        return turn

    def look(self) -> list[Turn]:
        """The turns that have come, when it is time to look."""
        began = time.monotonic()
        if not self.wishes or began < self.due:
            return []
        tried = [(wish, self._try_or_wait(wish)) for wish in self.wishes]
        self.wishes = [wish for wish, turn in tried if turn is None]
        now = time.monotonic()
        self.due = now + max(LOOK_SECONDS, (now - began) / LOOK_SHARE)
        return [turn for _, turn in tried if turn is not None]

    def held(self, step: Step) -> Lease:
        """The lease of a stage that has begun."""
        assert step.key is not None
        return self.keeper.kept[self.store.claim_key(step.key)]

    def release(self, step: Step) -> None:
        """Give the lease of a stage back, if it is held."""
        if step.key is not None:
            self.keeper.release(self.store.claim_key(step.key))
            self.due = 0.0  # an equal stage of this run may wait for it

    def close(self) -> None:
        """Give everything back."""
        self.wishes.clear()
        self.keeper.close()

    def _try(self, wish: Wish) -> Turn | None:
        if wish.lease is None:
            if wish.claim.other and (manifest := self._made(wish.step)):
                return Turn(wish.step, wish.attempt, manifest=manifest)
            wish.lease = wish.claim.attempt()
        if wish.lease is None:
            self._tell(wish, f"waits for {wish.claim.other.holder}, which makes the same" if wish.claim.other else "")
            return None
        self.keeper.keep(wish.lease)
        if manifest := self._made(wish.step):
            self.keeper.release(wish.lease.key)
            return Turn(wish.step, wish.attempt, manifest=manifest)
        self._tell(wish, wish.claim.taken_over)
        return Turn(wish.step, wish.attempt, lease=wish.lease)

    def _try_or_wait(self, wish: Wish) -> Turn | None:
        """Try; a store that cannot be reached now is asked again at the next look, and ends no run."""
        try:
            return self._try(wish)
        except UnreachableError as error:
            self._tell(wish, str(error))
            return None

    def _made(self, step: Step) -> Manifest | None:
        """The result, if somebody has made it since the plan; not for a stage that is to be made anew."""
        if step.forced or step.key is None:
            return None
        manifest = self.store.find(step.spec.uses, step.key)
        return manifest if manifest and not self.store.damage(manifest) else None

    def _tell(self, wish: Wish, text: str) -> None:
        if text and text != wish.told:
            wish.told = text
            self.say(wish.step.spec.name, text)
