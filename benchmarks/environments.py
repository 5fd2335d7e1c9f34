"""Each peer in an environment of its own, pinned, kept between runs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def default_cache() -> Path:
    """Where environments are kept unless told otherwise."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "regraft-benchmarks"


def ensure_beside(cache: Path, package: str, version: str) -> Path:
    """A directory for `PYTHONPATH` with `package==version` alone; what it needs is taken from this environment."""
    place = cache / f"{package}-{version}-alone"
    if not (place / "ready").exists():
        print(f"installing {package} {version} into {place} (once)", file=sys.stderr)
        pip = [
            sys.executable,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
            "--no-deps",
            "--upgrade",
        ]
        done = subprocess.run([*pip, "--target", str(place), f"{package}=={version}"], capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"{package} {version} cannot be installed here:\n{done.stderr[-3000:]}")
        (place / "ready").touch()
    return place


def ensure(cache: Path, package: str, version: str) -> Path:
    """The `bin` directory of an environment with `package==version`; it is made when it is not there yet."""
    environment = cache / f"{package}-{version}"
    ready = environment / "ready"
    if not ready.exists():
        print(f"installing {package} {version} into {environment} (once)", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(environment)], check=True)
        pip = [str(environment / "bin/pip"), "install", "--quiet", "--disable-pip-version-check"]
        done = subprocess.run([*pip, f"{package}=={version}"], capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"{package} {version} cannot be installed here:\n{done.stderr[-3000:]}")
        ready.touch()
    return environment / "bin"
