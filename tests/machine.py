"""How tests use the machine: one thread for tiny tensors, one local Ray for those that need more processes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Two threads that wait for each other over tensors of a few kilobytes are slower than one."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture
def bare_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU without instructions for half precision: `auto` computes in float32 and writes bfloat16."""
    from grafts import arithmetic

    monkeypatch.setattr(arithmetic, "computes_in", lambda dtype, _device="cpu": dtype not in arithmetic.INSTRUCTIONS)


@pytest.fixture(scope="module")
def ray_cluster() -> Iterator[None]:
    """One local Ray for all tests of a module: starting it takes longer than they do."""
    import ray

    root = str(Path(__file__).parents[1])
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        runtime_env={"env_vars": {"PYTHONPATH": root}},
    )
    yield
    ray.shutdown()
