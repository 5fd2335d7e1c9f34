"""What is recorded beside a result and never counts into its key: versions, machine, git state."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit, urlunsplit

PACKAGES: Final = (
    "regraft",
    "torch",
    "transformers",
    "datasets",
    "deepspeed",
    "ray",
    "mlflow",
    "safetensors",
    "tokenizers",
    "compressed-tensors",
    "gguf",
)


@cache
def versions() -> dict[str, str]:
    """Installed versions of the packages that results depend on, and Python's."""
    installed = _installed()
    known = {package: installed[package] for package in PACKAGES if package in installed}
    return {"python": platform.python_version(), **known}


def _installed() -> dict[str, str]:
    """Version of every installed package, by its normalised name.

    The names of the directories say it; `importlib.metadata` would parse a mail header a package, in every run.
    """
    found: dict[str, str] = {}
    for place in filter(os.path.isdir, sys.path):
        for name in os.listdir(place):  # noqa: PTH208  (a tenth of the cost of iterdir for thousands of entries)
            if name.endswith(".dist-info"):
                package, _, version = name.removesuffix(".dist-info").partition("-")
                found.setdefault(package.lower().replace("_", "-"), version)
    return found


@cache
def machine() -> dict[str, Any]:
    """What this machine is."""
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {"system": platform.system(), "processor": _processor(), "cpus": os.cpu_count(), "memory_bytes": pages}


def git_state(directory: Path) -> dict[str, Any] | None:
    """Commit, branch and whether files differ from it, of the repository around `directory`; None outside one."""
    status = _git(directory, ["status", "--porcelain=v2", "--branch", "--untracked-files=no"]).splitlines()
    about = dict(line[2:].split(" ", 1) for line in status if line.startswith("# ") and line.count(" ") > 1)
    if "branch.oid" not in about:
        return None
    return {
        "commit": about["branch.oid"],
        "branch": about.get("branch.head", ""),
        "dirty": any(not line.startswith("#") for line in status),
        "remote": clean_remote(_git(directory, ["config", "--get", "remote.origin.url"])),
    }


def clean_remote(remote: str) -> str:
    """A git remote without user name, password, query and fragment; `git@host:path` is left as it is."""
    if "://" not in remote:
        return remote
    parts = urlsplit(remote)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def _git(directory: Path, arguments: list[str]) -> str:
    try:
        done = subprocess.run(["git", *arguments], cwd=directory, capture_output=True, text=True, timeout=10)
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    return processor_of(cpuinfo.read_text()) if cpuinfo.exists() else platform.processor()


def processor_of(cpuinfo: str) -> str:
    """The first processor of Linux's `/proc/cpuinfo`; with family and model where a cloud keeps its name to itself."""
    lines = (line.partition(":") for line in cpuinfo.partition("\n\n")[0].splitlines())
    said = {name.strip(): value.strip() for name, _, value in lines}
    name = said.get("model name", "")
    if name and "cpu family" in said and not any(letter.isdigit() for letter in name):
        return f"{name} (family {said['cpu family']}, model {said.get('model', '?')})"
    return name or platform.processor()
