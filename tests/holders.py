"""Drivers that are not this process: one that died here, one on a machine far away."""

from __future__ import annotations

import subprocess
import time

from pipelines.store import Store
from pipelines.store.holder import Holder, this_machine


def dead(run: str, stage: str = "") -> Holder:
    """A process of this machine that has ended."""
    process = subprocess.Popen(["true"])
    process.wait()
    return Holder(run, "here", this_machine(), process.pid, "1", time.time(), stage)


def far(run: str, stage: str = "") -> Holder:
    """A process of another machine: only its heartbeat tells whether it lives."""
    return Holder(run, "faraway", "faraway 1f2e", 4711, "99", time.time(), stage)


def mark(store: Store, holder: Holder) -> None:
    """Note that the run of `holder` goes on."""
    directory = store.run_directory(holder.run)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "open").write_text(holder.to_json(), encoding="utf-8")
