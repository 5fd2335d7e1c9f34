"""Which samples make up which step: a pure function of the seed and the step, so that nothing has to be remembered.

Every epoch is a permutation of the data drawn from (seed, epoch). The global batch of a step is cut from the endless
row of epochs; workers take even slices of it, and micro-batches slices of those. So a resumed run sees what an
uninterrupted one sees, and neither the workers nor the micro-batch decide which samples meet in a step.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from stages.seeds import derived_seed


def global_batch(step: int, batch_size: int, num_samples: int, seed: int) -> list[int]:
    """The `batch_size` sample indices of `step`, each in [0, num_samples); a batch may span epochs."""
    positions = range(step * batch_size, (step + 1) * batch_size)
    return [int(_permutation(seed, p // num_samples, num_samples)[p % num_samples]) for p in positions]


def worker_share(batch: list[int], rank: int, world_size: int) -> list[int]:
    """The contiguous part of a global batch that worker `rank` computes; sizes differ by one at most."""
    return batch[len(batch) * rank // world_size : len(batch) * (rank + 1) // world_size]


def micro_batches(share: list[int], micro_batch: int, num_micro: int) -> list[list[int]]:
    """`share` in `num_micro` parts of at most `micro_batch`; parts may be empty, so that workers keep step."""
    return [share[start : start + micro_batch] for start in range(0, num_micro * micro_batch, micro_batch)]


def step_seed(seed: int, step: int, rank: int) -> int:
    """Seed of the random numbers (dropout, sampling) that worker `rank` draws in `step`, in [0, 2^63)."""
    return derived_seed(seed, "step", step, rank)


@lru_cache(maxsize=2)
def _permutation(seed: int, epoch: int, num_samples: int) -> np.ndarray:
    return np.random.Generator(np.random.PCG64(derived_seed(seed, "order", epoch))).permutation(num_samples)
