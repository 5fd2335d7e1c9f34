"""What of a store may go, and why: decides, and removes nothing (`sweep.py` does).

A result stays when a live run holds it or may read it, when a tag or one of the newest runs of its pipeline has it,
when it is the newest of its stage, and when one that stays was made from it: what is kept can always be run again.
Everything else goes, with the leftovers of runs that died.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from pipelines.housekeeping.alive import Alive
from pipelines.housekeeping.ancestry import inputs_of
from pipelines.housekeeping.catalogue import Catalogue, began, directory_name
from pipelines.housekeeping.leftovers import Item, leftovers, unfinished
from pipelines.housekeeping.runs import RunRecord, Short, short
from pipelines.housekeeping.tags import read_tags
from pipelines.spec.quantities import format_duration
from pipelines.store import Manifest

SUCCEEDED: Final = "done"


@dataclass(frozen=True)
class Policy:
    """What people want kept."""

    keep_last: int = 5
    """Successful runs of each pipeline, the newest; whatever ran after the oldest of them is kept with them."""
    keep_tagged: bool = True
    """Whether tagged runs and artifacts are kept."""
    keep_newest: bool = True
    """Whether the newest result of every stage is kept."""
    older_than: float = 0.0
    """Seconds since its last use before something may go."""


def survey(catalogue: Catalogue, policy: Policy, alive: Alive, now: float | None = None) -> list[Item]:
    """Everything that can be removed from a store, each with what becomes of it; first what goes, largest first."""
    now = time.time() if now is None else now
    keeper = _Keeper(catalogue, policy, alive)
    keeper.decide()
    usage = _usage(catalogue)
    items = [_artifact(keeper, usage, manifest) for manifest in catalogue.manifests.values()]
    items += unfinished(catalogue, alive)
    items += leftovers(catalogue, alive, keeper.runs)
    items = [_aged(item, policy.older_than, now) for item in items]
    return sorted(items, key=lambda item: (not item.goes, item.kind != "artifact", -item.bytes, item.path))


@dataclass
class _Keeper:
    """Finds what stays, in the order of its reasons: the first reason is the one that is told."""

    catalogue: Catalogue
    policy: Policy
    alive: Alive
    reasons: dict[Short, str] = field(default_factory=dict)
    runs: dict[str, str] = field(default_factory=dict)
    """Why each kept run is kept."""

    def decide(self) -> None:
        """Fill `reasons`."""
        self._living()
        if self.policy.keep_tagged:
            self._tagged()
        self._last_runs()
        for run, why in self.runs.items():
            if record := self.catalogue.runs.get(run):
                for name in record.results.values():
                    self._keep(name, why)
        if self.policy.keep_newest:
            self._newest()
        self._ancestors()

    def _keep(self, name: Short, why: str) -> None:
        if name in self.catalogue.manifests:
            self.reasons.setdefault(name, why)

    def _living(self) -> None:
        """A live run may take over any result of the methods it names, not only those it already has."""
        methods = {m: run for run in self.alive.runs for m in self._methods(run)}
        for name in self.catalogue.manifests:
            if holder := self.alive.holder(name[1]):
                self._keep(name, f"held by {holder}")
            elif name[0] in methods:
                self._keep(name, f"run {methods[name[0]]} is at work and may read it")

    def _methods(self, run: str) -> set[str]:
        record = self.catalogue.runs.get(run)
        # A run that has not said yet what it is about may be about anything.
        return set(record.methods.values()) if record and record.methods else {n[0] for n in self.catalogue.manifests}

    def _tagged(self) -> None:
        for tag in read_tags(self.catalogue.files).values():
            if tag.kind == "run":
                self.runs.setdefault(tag.run, f"its run has the tag {tag.name}")
            else:
                self._keep(short(tag.method, tag.key), f"has the tag {tag.name}")

    def _last_runs(self) -> None:
        found: dict[str, list[RunRecord]] = {}
        for record in reversed(self.catalogue.runs.values()):
            newer = found.setdefault(record.pipeline, [])
            if sum(run.state in (SUCCEEDED, "elsewhere") for run in newer) < self.policy.keep_last:
                newer.append(record)
        for pipeline, records in found.items():
            for record in records:
                self.runs.setdefault(record.name, f"run {record.name} is one of the last of {pipeline}")

    def _newest(self) -> None:
        """What stages had last on this machine, which outlives the runs, and in the newest runs of all machines."""
        for path in sorted((self.catalogue.files.root / "last").glob("*/*.json")):
            if entry := _entry(path.read_bytes()):
                self._keep(entry, f"the newest result of {path.stem} in {path.parent.name}")
        runs = self.catalogue.runs.values()
        newest = {(run.pipeline, stage): name for run in runs for stage, name in run.results.items()}
        for (pipeline, stage), name in newest.items():
            self._keep(name, f"the newest result of {stage} in {pipeline}")

    def _ancestors(self) -> None:
        waiting = list(self.reasons)
        while waiting:
            reader = self.catalogue.manifests[waiting.pop()]
            for _, digest, maker in inputs_of(self.catalogue, reader):
                names = [short(maker.manifest.method, maker.manifest.key)] if maker else []
                # The maker's bytes may be gone while the same content is there under another key.
                names += [
                    short(made.manifest.method, made.manifest.key) for made in self.catalogue.by_digest.get(digest, [])
                ]
                name = next((name for name in names if name in self.catalogue.manifests), None)
                if name and name not in self.reasons:
                    self.reasons[name] = f"{reader.stage} was made from it, which stays"
                    waiting.append(name)


def _entry(data: bytes) -> Short | None:
    try:
        content = json.loads(data)
        return short(content["method"], content["key"])
    except (ValueError, KeyError, TypeError):
        return None  # half-written by a crash: the stage has had nothing yet


def _usage(catalogue: Catalogue) -> dict[Short, RunRecord]:
    """The newest run that had each result."""
    return {name: record for record in catalogue.runs.values() for name in record.results.values()}


def _artifact(keeper: _Keeper, usage: Mapping[Short, RunRecord], manifest: Manifest) -> Item:
    name = short(manifest.method, manifest.key)
    record = usage.get(name)
    made = began(manifest) + float(manifest.evidence.get("seconds") or 0.0)
    why = keeper.reasons.get(name)
    return Item(
        "artifact",
        directory_name(manifest),
        f"{manifest.stage or manifest.method} {manifest.key[:8]}",
        sum(output.size for output in manifest.outputs.values()),
        record.name if record else manifest.run,
        max(record.last if record else 0.0, made),
        goes=why is None,
        why=why or "no run, tag or stage that is kept needs it",
        manifest=manifest,
    )


def _aged(item: Item, older_than: float, now: float) -> Item:
    age = now - item.last_used
    if not item.goes or not item.last_used or age >= older_than:
        return item
    why = f"used {format_age(age)} ago, less than {format_age(older_than)}"
    return Item(**{**vars(item), "goes": False, "why": why})


def format_age(seconds: float) -> str:
    """`5 days`, else as a duration."""
    days = int(seconds // 86400)
    return f"{days} day{'s' if days > 1 else ''}" if days else format_duration(max(0.0, seconds))
