from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from stages.training.order import global_batch, micro_batches, step_seed, worker_share

sizes = st.integers(1, 40)


@given(batch_size=sizes, num_samples=sizes, seed=st.integers(0, 2**32))
def test_every_epoch_shows_every_sample_once(batch_size, num_samples, seed):
    seen = [i for step in range(num_samples) for i in global_batch(step, batch_size, num_samples, seed)]
    for epoch in range(batch_size):
        assert sorted(seen[epoch * num_samples : (epoch + 1) * num_samples]) == list(range(num_samples))


@given(batch_size=sizes, world_size=st.integers(1, 9), micro=st.integers(1, 9))
def test_workers_and_micro_batches_partition_the_global_batch(batch_size, world_size, micro):
    batch = global_batch(3, batch_size, 100, seed=1)
    num_micro = math.ceil(math.ceil(batch_size / world_size) / micro)
    parts = [micro_batches(worker_share(batch, rank, world_size), micro, num_micro) for rank in range(world_size)]
    assert all(len(part) == num_micro for part in parts)
    assert [i for worker in parts for part in worker for i in part] == batch


def test_epochs_and_seeds_differ():
    first, second = global_batch(0, 32, 32, seed=0), global_batch(1, 32, 32, seed=0)
    assert first != second
    assert first != global_batch(0, 32, 32, seed=1)


def test_seeds_of_steps_and_workers_differ():
    assert len({step_seed(0, step, rank) for step in range(10) for rank in range(4)}) == 40


def test_order_is_the_same_on_every_machine():
    assert global_batch(0, 8, 100, seed=0) == [51, 59, 40, 78, 15, 10, 36, 6]
