"""What a worker does around the loop, and training in this very process as a world of one. Knows no Ray."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from stages.environment import environment

if TYPE_CHECKING:
    from stages.training.recipe import Emit, Stopping
    from stages.training.task import Task, TrainingResult


def train_here(task: Task, emit: Emit, stopping: Stopping = lambda: False) -> TrainingResult:
    """Train in this process, in a world of one that opens no port, and leave no trace of it."""
    with environment(DS_ACCELERATOR=None, **_world_of_one()), _linear_as_it_was():
        from stages.training.engine import use_accelerator

        device = use_accelerator()
        import torch.distributed

        backend = "nccl" if device.type == "cuda" else "gloo"
        torch.distributed.init_process_group(backend, store=torch.distributed.HashStore(), rank=0, world_size=1)
        try:
            return train_as(task, rank=0, world_size=1, emit=emit, stopping=stopping)
        finally:
            _leave_process_group()


def _world_of_one() -> dict[str, str]:
    loopback = "lo0" if os.uname().sysname == "Darwin" else "lo"
    names = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}
    return {**names, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0", "GLOO_SOCKET_IFNAME": loopback}


def train_as(task: Task, rank: int, world_size: int, emit: Emit, stopping: Stopping = lambda: False) -> TrainingResult:
    """What every worker does once its process group exists."""
    from stages.training.engine import use_accelerator
    from stages.training.loop import train
    from stages.training.precision import torch_dtype, written_dtype
    from stages.training.recipe import Worker

    device = use_accelerator()
    _open_deepspeed()
    dtype, written = torch_dtype(task.settings.precision), written_dtype(task.asked or task.settings.precision)
    return train(task, Worker(rank, world_size, device, dtype, emit, stopping, written))


def _open_deepspeed() -> None:
    from stages.training.engine import use_no_compiled_operations

    use_no_compiled_operations()
    import deepspeed

    deepspeed.init_distributed(auto_mpi_discovery=False, verbose=False)


def _leave_process_group() -> None:
    import deepspeed.comm
    import torch.distributed

    if deepspeed.comm.is_initialized():
        deepspeed.comm.destroy_process_group()
    elif torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


@contextmanager
def _linear_as_it_was() -> Iterator[None]:
    """ZeRO 3 replaces `torch.nn.functional.linear` with a function of its own, and leaves it there."""
    from torch.nn import functional

    linear = functional.linear
    try:
        yield
    finally:
        functional.linear = linear
