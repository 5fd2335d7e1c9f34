"""The runs of a store: whose they are, whether they live, and what they left half made."""

from __future__ import annotations

import contextlib
import os
import shutil
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from pipelines.store.holder import EXPIRY_SECONDS, Holder, silence, silent_for


class RunRecords:
    """The part of a store that is about runs, on a disk that one or several machines share."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def run_directory(self, run: str) -> Path:
        """The local directory with the run's journal and logs."""
        return self.root / "runs" / run

    def clear_work(self, run: str | None = None) -> None:
        """Remove what `run` left half made; without a run, what all runs left that are over or died."""
        names = [run] if run else [path.name for path in (self.root / "work").glob("*")]
        for name in names:
            if name == run or self.death_of(name) != "":
                shutil.rmtree(self.root / "work" / name, ignore_errors=True)

    def beat_run(self, run: str) -> None:
        """The heartbeat of a run's mark."""
        with contextlib.suppress(FileNotFoundError):
            os.utime(self.run_directory(run) / "open")

    def holder_of(self, run: str) -> Holder | None:
        """Who drives a run that has not ended."""
        with contextlib.suppress(FileNotFoundError):
            return Holder.from_json((self.run_directory(run) / "open").read_bytes())
        return None

    def death_of(self, run: str) -> str | None:
        """Why a run that never ended is taken for dead; "" while it lives, None when it ended or is not known."""
        return death_of(self.run_directory(run))

    def may_close(self, run: str) -> bool:  # noqa: ARG002
        """Whether the end of a dead run is this machine's to write. On a disk it is anybody's."""
        return True

    def sharing(self, run: str, log: str = "") -> AbstractContextManager[None]:  # noqa: ARG002
        """While it is open, other machines can follow the run, or only its `log`. A disk is shared as it is."""
        return nullcontext()

    def reaching(self) -> AbstractContextManager[None]:
        """Turns what goes wrong on the way to the store into UnreachableError. To a disk there is no way."""
        return nullcontext()

    def pull_runs(self) -> None:
        """Bring the journals of runs on other machines here, to `run_directory`. On a disk they are."""

    def pull_run(self, run: str) -> None:
        """Bring everything of one run here. On a disk it is."""


def death_of(run_directory: Path) -> str | None:
    """Why the run in this directory is taken for dead; "" while it lives, None when it ended."""
    mark = run_directory / "open"
    try:
        holder = Holder.from_json(mark.read_bytes())
        if holder.is_gone:
            return f"its process {holder.pid} on {holder.host} is gone"
        if holder.is_local:
            return ""
        silent = silence(mark, run_directory / ".clock")
    except FileNotFoundError:
        return None
    where = f" on {holder.host}" if holder.host else ""
    return f"{silent_for(silent)}{where}" if silent > EXPIRY_SECONDS else ""
