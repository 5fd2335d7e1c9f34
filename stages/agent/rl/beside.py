"""Rollouts written beside training, by a Ray actor that holds a copy of the policy.

Weights go to the actor through Ray's object store, sets come back the same way. Where there is no room for a second
worker like the one that trains, none is started: then that one writes the same sets itself, in turn.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Final

import torch
from transformers import PreTrainedModel

from stages.agent.actors import start_actor
from stages.agent.rl.recipe import AgentLearning
from stages.agent.rl.sets import Collected
from stages.errors import RegraftError, StageError
from stages.holding import answer
from stages.local_cluster import cluster
from stages.stage import Context, Resources
from stages.training.engine import use_accelerator
from stages.training.precision import torch_dtype
from stages.training.recipe import Worker

ROOM_SECONDS: Final = 60.0
"""In which the actor has to be up on this node."""
IN_TURN: Final = "rollouts and updates take turns: {why} (the result is the same)"
NO_ROOM: Final = "this node has no room for both at once"


@contextmanager
def writer_beside(recipe: AgentLearning, context: Context) -> Iterator[Beside | None]:
    """A writer for `recipe` in another process, None where none is asked for or there is no room; gone afterwards.

    Raises the error of this project that keeps the actor from opening the environment.
    """
    resources = context.resources
    if not recipe.params.staleness:
        yield None
    elif resources.workers > 1:
        context.say(IN_TURN.format(why=f"beside each other they need workers: 1, here are {resources.workers}"))
        yield None
    elif not _has_room(resources):
        context.say(IN_TURN.format(why=NO_ROOM))
        yield None
    else:
        with cluster(replace(resources, workers=2)):
            writer = _start(recipe, context)
            try:
                yield writer
            finally:
                if writer is not None:
                    writer.close()


class Beside:
    """The actor as a `SetWriter`."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor
        self._waiting: Any = None

    def start(self, policy: PreTrainedModel, number: int) -> None:
        """Hand the weights over and have the set begun."""
        import ray

        weights = ray.put({name: x.detach().cpu() for name, x in _tensors(policy).items()})
        self._waiting = self._actor.collect.remote(weights, number)

    def take(self) -> Collected:
        """The set; `waiting` are the seconds that training stood still for it. Raises StageError for a lost actor."""
        started = time.monotonic()
        found = _answer(self._waiting)
        return Collected(found.experiences, {**found.seconds, "waiting": time.monotonic() - started})

    def close(self) -> None:
        """End the actor, and with it its tools."""
        import ray

        ray.kill(self._actor)


class _Actor:
    """A collector and its policy, in a process of their own."""

    def __init__(self, recipe: AgentLearning) -> None:
        self.recipe = recipe

    def ready(self) -> None:
        """Nothing: that it returns says that there was room."""

    def open(self, num_threads: int) -> list[dict[str, Any]] | RegraftError:
        """Load all that it takes; what was said on the way."""
        torch.set_num_threads(num_threads)
        said: list[dict[str, Any]] = []
        worker = Worker(0, 1, use_accelerator(), torch_dtype(self.recipe.params.precision), said.append)
        try:
            self.collector, self.policy = self.recipe.collector(worker), self.recipe.policy(worker)
        except RegraftError as error:  # returned, for an error that Ray raises has lost what it was
            return error
        return said

    def collect(self, weights: dict[str, torch.Tensor], number: int) -> Collected | RegraftError:
        """The set `number` with these weights."""
        with torch.no_grad():
            for name, tensor in _tensors(self.policy).items():
                tensor.copy_(weights[name])
        try:
            found = self.collector.collect(self.policy, number)
        except RegraftError as error:
            return error
        return Collected(found, dict(self.collector.seconds))


def _tensors(policy: PreTrainedModel) -> dict[str, torch.Tensor]:
    return {**dict(policy.named_parameters()), **dict(policy.named_buffers())}


def _has_room(resources: Resources) -> bool:
    """Whether the cluster has what a second worker takes now; without one, whether this machine can hold two."""
    import ray

    if ray.is_initialized():
        free, times = ray.available_resources(), 1
    else:
        free, times = {"CPU": float(os.cpu_count() or 1), "GPU": float(torch.cuda.device_count())}, 2
    wanted = {"CPU": times * resources.cpus, "GPU": times * resources.gpus}
    return all(amount <= free.get(name, 0.0) for name, amount in wanted.items())


def _start(recipe: AgentLearning, context: Context) -> Beside | None:
    """An actor that has loaded its policy; None without room for it. Raises StageError for one that dies meanwhile."""
    resources = context.resources
    options = {"num_cpus": resources.cpus, "num_gpus": resources.gpus, "memory": resources.memory_bytes or None}
    actor = start_actor(_Actor, recipe, purpose="rollouts", seconds=ROOM_SECONDS, **options)
    if actor is None:
        context.say(IN_TURN.format(why=NO_ROOM))
        return None
    writer = Beside(actor)
    try:
        said = _answer(actor.open.remote(torch.get_num_threads()))
    except RegraftError:
        writer.close()
        raise
    for event in said:
        context.emit(event)
    return writer


def _answer(reference: Any) -> Any:
    """What an actor returned. Raises the error of this project that it returned; StageError where it failed."""
    from ray.exceptions import RayError, RayTaskError

    try:
        found = answer(reference)
    except RayError as error:
        cause = getattr(error, "cause", None) or error  # without the traceback that Ray wraps it in
        raise StageError(
            f"the process that writes rollouts {'failed' if isinstance(error, RayTaskError) else 'is lost'}: "
            f"{type(cause).__name__}: {cause}",
            fix="a retry goes on from the last checkpoint",
        ) from error
    if isinstance(found, RegraftError):
        raise found
    return found
