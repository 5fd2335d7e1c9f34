"""What the nodes of the Ray cluster that this process belongs to have, have free, and are asked for.

The cluster's own tables tell, which are there without a dashboard.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import ray

from clusters.executor import Capacity, Share, units
from clusters.room import Situation


def capacity() -> Capacity:
    """The largest node's and the whole cluster's resources: of the nodes that are up."""
    nodes = tuple(_nodes().values())
    most = [max(amounts, default=0) for amounts in (zip(*nodes, strict=True) if nodes else ((), (), ()))]
    total_cpus, total_gpus = sum(node.cpus for node in nodes), sum(node.gpus for node in nodes)
    return Capacity(most[0], most[1], most[2], total_cpus, total_gpus, nodes)


def situation() -> Situation:
    """All of that now, and what waits: tasks of anybody, groups of this job. Nothing through a `ray://` address."""
    if ray.util.client.ray.is_connected():
        return Situation((), ())  # the tables are out of reach
    nodes, free = _nodes(), ray._private.state.available_resources_per_node()
    load = _load()
    demands = [demand.shape for demand in load.resource_load_by_shape.resource_demands]
    tasks = [{name: units(amount) for name, amount in shape.items()} for shape in demands]
    return Situation(list(nodes.values()), [_share(free.get(name, {})) for name in nodes], tasks, list(_groups(load)))


def _nodes() -> dict[str, Share]:
    return {node["NodeID"]: _share(node["Resources"]) for node in ray.nodes() if node["Alive"]}


def _share(resources: Mapping[str, float]) -> Share:
    return Share(resources.get("CPU", 0), resources.get("GPU", 0), resources.get("memory", 0))


def _load() -> Any:
    import ray._private.state
    from ray.core.generated import gcs_pb2

    data = ray._private.state.state._connect_and_get_accessor().get_all_resource_usage()
    return gcs_pb2.ResourceUsageBatchData.FromString(data or b"")


def _groups(load: Any) -> Iterator[int]:
    """How many workers each placement group of this job has that waits for a place."""
    from ray.core.generated.gcs_pb2 import PlacementGroupTableData  # pyrefly: ignore[missing-module-attribute]

    job = ray.get_runtime_context().get_job_id()
    for group in load.placement_group_load.placement_group_data:
        waits = group.state in (PlacementGroupTableData.PENDING, PlacementGroupTableData.RESCHEDULING)
        if waits and group.creator_job_id.hex() == job:
            yield len(group.bundles)
