"""What a cluster can give as far as it is known without connecting to it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from clusters.executor import Capacity
from clusters.profile import Profile

_CGROUP_MEMORY: Final = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
_OTHER_ACCELERATORS: Final = (Path("/dev/kfd"), Path("/dev/dri"), Path("/dev/accel"))


def known_capacity(profile: Profile) -> Capacity:
    """What the profile declares; for a local Ray, what this machine has where the profile is silent.

    Infinite where nothing is known. A local Ray may give a little less memory than the machine has.
    """
    said = profile.declared()
    if profile.address != "local":
        return said
    cpus = said.node_cpus if profile.cpus is not None else float(os.cpu_count() or 1)
    gpus = said.node_gpus if profile.gpus is not None else _num_gpus()
    return Capacity(cpus, gpus, min(said.node_memory_bytes, _memory_bytes()), cpus, gpus)


def _num_gpus() -> float:
    """GPUs that this process may use; infinite where there are accelerators that only Ray can count."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return float(len([name for name in visible.split(",") if name.strip() not in ("", "-1")]))
    found = len(list(Path("/proc/driver/nvidia/gpus").glob("*")))
    others = any(path.exists() for path in _OTHER_ACCELERATORS)
    return float(found) if found or not others else float("inf")


def _memory_bytes() -> float:
    """Memory of this machine, or of the container it is."""
    machine = float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    limits = [path.read_text().strip() for path in _CGROUP_MEMORY if path.exists()]
    return min([machine, *(float(text) for text in limits if text.isdecimal())])
