"""Disturbances: who is killed, or which disk is filled."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Final, Literal, get_args

import psutil

Kind = Literal["driver", "worker", "rank", "head", "disk"]
KINDS: Final[tuple[Kind, ...]] = get_args(Kind)
MARK: Final = "REGRAFT_CHAOS"
"""Environment variable that tells the processes of one trial from all others."""
DISK_MEBIBYTES: Final = 256


@dataclass(frozen=True)
class Scene:
    """Where a disturbance happens."""

    mark: str
    driver: subprocess.Popen[str]
    disk: Path


def disturb(kind: Kind, scene: Scene, rng: Random) -> str:
    """Do it as soon as there is something to disturb; tells what was done, or "" when the driver ended first."""
    if kind == "disk":
        return fill(scene.disk)
    while scene.driver.poll() is None:
        victims = _victims(kind, scene)
        if victims:
            # Stages are what a crash hits most; the process that carries their events is one victim in four.
            stages = [process for process in victims if "_Channel" not in _name(process)]
            victim = rng.choice(stages if stages and rng.random() < 0.75 else victims)
            with contextlib.suppress(psutil.NoSuchProcess):
                told = f"{victim.pid} {_name(victim)[:60]}"
                os.kill(victim.pid, signal.SIGKILL)
                return told
        time.sleep(0.05)
    return ""


def processes(mark: str) -> list[psutil.Process]:
    """The living processes of one trial, whatever their parents have become."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def kill_all(mark: str) -> None:
    """End whatever a trial left."""
    for process in processes(mark):
        with contextlib.suppress(psutil.Error):
            process.kill()


def fill(disk: Path) -> str:
    """Leave no byte free on `disk`."""
    size, block = 0, 1 << 30
    with (disk / "ballast").open("wb") as stream:
        while block:
            try:
                os.posix_fallocate(stream.fileno(), size, block)
                size += block
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
                block //= 2
    return f"{size:,} bytes of ballast"


@contextlib.contextmanager
def small_disk(place: Path) -> Iterator[Path]:
    """A file system of its own at `place`, in memory. Needs the right to mount, see `own_mounts`."""
    place.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_MEBIBYTES}m", "none", str(place)], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def own_mounts(command: list[str]) -> list[str]:
    """`command`, where it may mount and nobody else sees it."""
    return ["unshare", "--user", "--map-root-user", "--mount", *command]


def can_mount() -> bool:
    """Whether `own_mounts` works here."""
    try:
        return subprocess.run(own_mounts(["mount", "-t", "tmpfs", "none", "/mnt"]), capture_output=True).returncode == 0
    except FileNotFoundError:
        return False


def _victims(kind: Kind, scene: Scene) -> list[psutil.Process]:
    if kind == "driver":
        return [psutil.Process(scene.driver.pid)]
    return [process for process in processes(scene.mark) if _is(kind, _name(process))]


def _is(kind: Kind, name: str) -> bool:
    if kind == "head":
        return name.endswith(("/gcs_server", "/raylet"))
    trains = "RayTrainWorker" in name
    return trains if kind == "rank" else name.startswith("ray::") and "IDLE" not in name and not trains


def _name(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.Error):
        return next(iter(process.cmdline()), "")
    return ""
