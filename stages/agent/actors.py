"""Ray actors of agents, on this node, where the artifacts are. Ray is imported when the first one starts."""

from __future__ import annotations

from typing import Any

from stages.errors import StageError
from stages.holding import answer


def start_actor(kind: type, *arguments: Any, purpose: str, seconds: float, **options: Any) -> Any:
    """An actor of `kind`, whose method `ready` has returned; None where none is up after so many seconds.

    `options` are Ray's. Raises StageError for one that dies as it starts.
    """
    import ray
    from ray.exceptions import ActorUnschedulableError, RayError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    remote: Any = ray.remote(kind)
    actor = remote.options(scheduling_strategy=here, **options).remote(*arguments)
    try:
        answer(actor.ready.remote(), seconds)
    except (TimeoutError, ActorUnschedulableError):
        ray.kill(actor)
        return None
    except RayError as error:
        ray.kill(actor)
        raise StageError(
            f"the process for {purpose} died as it started: {error}", fix="retry, with more memory"
        ) from error
    return actor
