"""Starting the workers of a training run: one trains in this process, more under Ray Train.

The only training file that knows Ray, and it imports Ray only for more than one worker. Events come home through an
actor, so that `Context.emit` may be any callable; the wish to stop goes out the same way, and a worker's own error is
what the caller sees.
"""

from __future__ import annotations

import asyncio
import shutil
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from stages.errors import RegraftError, StageError
from stages.local_cluster import cluster
from stages.stage import Context, Resources
from stages.training.local import train_as, train_here
from stages.training.precision import settled
from stages.training.task import Task, TrainingResult

if TYPE_CHECKING:
    from stages.training.recipe import Emit, Recipe, Stopping
    from stages.training.settings import TrainingParameters


RESULT: Final = "training result"
"""The event that brings the result of worker 0 home; it goes no further."""


def run_training(recipe: Recipe, settings: TrainingParameters, context: Context) -> TrainingResult:
    """Train `recipe` on `context.resources.workers` workers, and have worker 0 `finish` it.

    Resumes from `context.scratch`, and reports through `context.emit`. Raises the error of the worker that failed;
    StageError when a worker is lost.
    """
    precision = settled(settings.precision, gpus=context.resources.gpus > 0)
    # Not `replaced`, which checks again what people may set: a proxy has its evaluations set for it.
    computing = settings.model_copy(update={"precision": precision})
    task = Task(recipe, computing, context.seed, context.scratch / "checkpoints", asked=settings.precision)
    if context.resources.workers == 1:
        return train_here(task, context.emit, context.stopping)
    return _train_under_ray(task, context)


def _train_under_ray(task: Task, context: Context) -> TrainingResult:
    """Train on several workers of the cluster that this process belongs to, or of a local one."""
    results: list[TrainingResult] = []

    def receive(event: dict[str, Any]) -> None:
        if event["event"] == RESULT:
            results.append(event["result"])
        else:
            context.emit(event)

    with cluster(context.resources), _home(receive, context.stopping) as home:
        _fit(task, home, context.resources, context.scratch / "ray")
    return results[0]


def _fit(task: Task, home: Any, resources: Resources, storage: Path) -> None:
    from ray.train import RunConfig, ScalingConfig, TrainingFailedError
    from ray.train.torch import TorchTrainer

    shutil.rmtree(storage, ignore_errors=True)  # Ray Train would take a finished run there for its own
    trainer = TorchTrainer(
        _worker_main,
        train_loop_config={"task": task, "home": home},
        scaling_config=ScalingConfig(
            num_workers=resources.workers,
            use_gpu=resources.gpus > 0,
            resources_per_worker=_resources_per_worker(resources),
        ),
        run_config=RunConfig(name="train", storage_path=str(storage.resolve())),
    )
    try:
        trainer.fit()
    except TrainingFailedError as error:
        raise _cause(error) from error
    finally:
        shutil.rmtree(storage, ignore_errors=True)


def _worker_main(config: Mapping[str, Any]) -> None:
    """A Ray Train worker: Ray has made the process group already."""
    import ray
    import ray.train

    place, home = ray.train.get_context(), config["home"]

    def emit(event: dict[str, Any]) -> None:
        ray.get(home.put.remote(event))

    def stopping() -> bool:
        return ray.get(home.stopping.remote())

    result = train_as(config["task"], place.get_world_rank(), place.get_world_size(), emit, stopping)
    if place.get_world_rank() == 0:
        emit({"event": RESULT, "result": result})


def _cause(error: Exception) -> Exception:
    """The error of this project among the workers' failures: the others fail only because that one left."""
    failures: Mapping[int, Exception] = getattr(error, "worker_failures", {})
    for rank in sorted(failures):
        own = _own_error(failures[rank])
        if own is not None:
            return own
    told = "; ".join(f"worker {rank}: {failures[rank]}" for rank in sorted(failures)) or str(error)
    return StageError(f"training failed: {told}", fix="a retry resumes from the last checkpoint")


def _own_error(error: BaseException | None) -> RegraftError | None:
    while error is not None and not isinstance(error, RegraftError):
        error = getattr(error, "cause", None) or error.__cause__
    return error


def _resources_per_worker(resources: Resources) -> dict[str, float]:
    wanted = {"CPU": resources.cpus, "GPU": resources.gpus, "memory": resources.memory_bytes}
    return {name: amount for name, amount in wanted.items() if amount}


class _Home:
    """An actor between the workers and the process that started them."""

    def __init__(self) -> None:
        self.events: asyncio.Queue[Any] = asyncio.Queue()
        self.stop = False

    async def put(self, event: dict[str, Any] | None) -> None:
        await self.events.put(event)

    async def get(self) -> dict[str, Any] | None:
        return await self.events.get()

    async def ask_to_stop(self) -> None:
        self.stop = True

    async def stopping(self) -> bool:
        return self.stop


@contextmanager
def _home(emit: Emit, stopping: Stopping) -> Iterator[Any]:
    """A `_Home` whose events reach `emit` in this process, in order; all of them have on leaving.

    Each event is an occasion to see whether to stop. When `emit` fails, the workers are asked to stop, the rest of
    the events is dropped, and that failure is raised, whatever the workers say of having stopped.
    """
    import ray

    home, failures = ray.remote(num_cpus=0)(_Home).remote(), []

    def forward() -> None:
        while (event := ray.get(home.get.remote())) is not None:
            if failures:
                continue
            try:
                emit(event)
                if stopping():
                    home.ask_to_stop.remote()
            except Exception as error:  # told to the caller below: a thread has nobody to raise to
                failures.append(error)
                home.ask_to_stop.remote()

    thread = threading.Thread(target=forward, name="training-events", daemon=True)
    thread.start()
    try:
        yield home
    finally:
        home.put.remote(None)
        thread.join()
        ray.kill(home)
        if failures:
            raise failures[0]
