"""The Ray cluster that the workers of a stage run in."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from stages.environment import environment
from stages.stage import Resources


@contextmanager
def cluster(resources: Resources) -> Iterator[None]:
    """The cluster of this process; without one, a local one, gone afterwards.

    Ray decides when it is imported whether a node listens on its network address or, as on desktops, on loopback only:
    the variable with the odd name asks for the second.
    """
    with environment(RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER="0", RAY_USAGE_STATS_ENABLED="0"):
        import ray

        if ray.is_initialized():
            yield
            return
        ray.init(
            address="local",
            num_cpus=max(os.cpu_count() or 1, math.ceil(resources.workers * resources.cpus)),
            include_dashboard=False,
            log_to_driver=False,
            runtime_env={"env_vars": {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}},
        )
        try:
            yield
        finally:
            ray.shutdown()
