"""What this machine remembers of the runs it submitted: enough to find them again. Holds no value of any variable."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from clusters.profile import ProfileError, load_profile
from pipelines.running.journal import runs_called
from pipelines.store.contents import write_atomically
from stages.errors import UserError

if TYPE_CHECKING:
    from clusters.jobs import Jobs


@dataclass(frozen=True)
class Submission:
    """One run that was submitted."""

    run: str
    """The run's name, and the job's."""
    dashboard: str
    store: str
    env: tuple[str, ...] = ()
    """Names of the variables that were handed on."""

    def save(self) -> None:
        """Remember it."""
        directory().mkdir(parents=True, exist_ok=True)
        write_atomically(directory() / f"{self.run}.json", json.dumps(asdict(self)).encode())

    def values(self) -> dict[str, str]:
        """Those variables as they are here; never to be shown."""
        return {name: os.environ[name] for name in self.env if name in os.environ}

    def jobs(self) -> Jobs:
        """The cluster it was sent to. Raises UserError when that cannot be reached."""
        return connect(self.dashboard)


def directory() -> Path:
    """Where submissions are remembered."""
    return Path(os.environ.get("REGRAFT_CACHE", Path.home() / ".cache" / "regraft")) / "submitted"


def find(run: str | None) -> Submission | None:
    """The submission whose run has this name, or the only one whose name begins so; None when there is none."""
    if not run or run == "latest" or not directory().is_dir():
        return None
    names = sorted(file.stem for file in directory().glob("*.json"))
    found = runs_called(run, names)
    if len(found) != 1:
        return None
    content = json.loads((directory() / f"{found[0]}.json").read_bytes())
    return Submission(**{**content, "env": tuple(content["env"])})


def at_cluster(run: str, cluster: str, store: str) -> Submission:
    """A run that another machine submitted to `cluster`. Raises UserError."""
    try:
        profile = load_profile(cluster)
        return Submission(run, profile.dashboard, store, profile.env)
    except ProfileError as error:
        raise UserError(str(error)) from None


def connect(dashboard: str) -> Jobs:
    """The jobs at `dashboard`. Raises UserError when it cannot be reached or does not let us in."""
    from clusters.jobs import JobError, Jobs

    try:
        return Jobs(dashboard)
    except JobError as error:
        raise UserError(str(error), fix=error.fix) from None
