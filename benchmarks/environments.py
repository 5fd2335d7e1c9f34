"""Each peer in an environment of its own, pinned, kept between runs."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path


def default_cache() -> Path:
    """Where environments are kept unless told otherwise."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "regraft-benchmarks"


def ensure_beside(cache: Path, package: str, version: str, more: Sequence[str] = ()) -> Path:
    """A directory for `PYTHONPATH` with `package==version` and `more`; what they need is taken from here."""
    place = _place(cache, package, version, more, "-alone")
    if not (place / "ready").exists():
        print(f"installing {package} {version} into {place} (once)", file=sys.stderr, flush=True)
        options = ["--no-deps", "--upgrade", "--target", str(place)]
        _install([sys.executable, "-m", "pip"], [*options, f"{package}=={version}", *more])
        (place / "ready").touch()
    return place


def ensure(cache: Path, package: str, version: str, more: Sequence[str] = ()) -> Path:
    """The `bin` directory of an environment with `package==version` and `more`; made when it is not there yet."""
    environment = _place(cache, package, version, more)
    ready = environment / "ready"
    if not ready.exists():
        print(f"installing {package} {version} into {environment} (once)", file=sys.stderr, flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(environment)], check=True)
        _install([str(environment / "bin/pip")], [f"{package}=={version}", *more])
        ready.touch()
    return environment / "bin"


def _place(cache: Path, package: str, version: str, more: Sequence[str], ending: str = "") -> Path:
    """Another one for each `more`, so that what is kept is what is asked for."""
    digest = f"-{hashlib.sha256(' '.join(more).encode()).hexdigest()[:8]}" if more else ""
    return cache / f"{package}-{version}{digest}{ending}"


def _install(pip: list[str], what: list[str]) -> None:
    command = [*pip, "install", "--quiet", "--disable-pip-version-check", *what]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(what)} cannot be installed here:\n{done.stderr[-3000:]}")
