"""The same work for many tasks, in this process or by Ray Data, with the results in the tasks' order.

The only file here that knows Ray, and it imports Ray only for more than one worker. As the results come in order and
each is a function of its task, how many workers there are cannot be seen in them.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any, Final, Self, TypeVar

from stages.errors import RegraftError, StageError
from stages.local_cluster import cluster
from stages.stage import Resources

Task = TypeVar("Task")
Result = TypeVar("Result")
TASKS_A_BLOCK: Final = 4
"""Tasks that Ray starts as one."""


class Workers:
    """`resources.workers` of them while the `with` lasts: one is this process, more are Ray's."""

    def __init__(self, resources: Resources) -> None:
        self._resources = resources
        self._open = ExitStack()

    def __enter__(self) -> Self:
        if self._resources.workers > 1:
            self._open.enter_context(cluster(self._resources))
        return self

    def __exit__(self, *error: object) -> None:
        self._open.close()

    def in_order(self, function: Callable[[Task], Result], tasks: Sequence[Task]) -> Iterator[Result]:
        """`function` of each task, in order.

        Raises the error of this project that a task failed with; StageError when workers are lost.
        """
        if self._resources.workers == 1 or not tasks:
            return map(function, tasks)
        return _by_ray(function, tasks, self._resources)


def _by_ray(function: Callable[[Task], Result], tasks: Sequence[Task], resources: Resources) -> Iterator[Result]:
    import ray.data
    import ray.exceptions
    from ray import cloudpickle

    def work(rows: dict[str, Any]) -> dict[str, Any]:
        return {"result": [cloudpickle.dumps(_attempt(function, cloudpickle.loads(task))) for task in rows["task"]]}

    logging.getLogger("ray.data").setLevel(logging.ERROR)
    num_blocks = min(len(tasks), max(resources.workers, math.ceil(len(tasks) / TASKS_A_BLOCK)))
    items = [{"task": cloudpickle.dumps(task)} for task in tasks]
    dataset = ray.data.from_items(items, override_num_blocks=num_blocks)
    dataset.context.execution_options.preserve_order = True
    dataset.context.enable_progress_bars = False
    mapped = dataset.map_batches(
        work,
        batch_size=1,
        compute=ray.data.TaskPoolStrategy(size=min(resources.workers, num_blocks)),
        num_cpus=resources.cpus,
        memory=resources.memory_bytes or None,
    )
    try:
        for row in mapped.iter_rows():
            result = cloudpickle.loads(row["result"])
            if isinstance(result, RegraftError):
                raise result
            yield result
    except ray.exceptions.RayTaskError:
        raise
    except ray.exceptions.RayError as error:
        raise StageError(f"a worker is lost: {error}", fix="a retry goes on from what is done") from error


def _attempt(function: Callable[[Task], Result], task: Task) -> Result | RegraftError:
    """The result, or the error for the user as one: an error that Ray raises again has lost what it was."""
    try:
        return function(task)
    except RegraftError as error:
        return error
