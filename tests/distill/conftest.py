from __future__ import annotations

from tests.machine import bare_cpu as bare_cpu
from tests.machine import one_thread as one_thread
from tests.machine import ray_cluster as ray_cluster
