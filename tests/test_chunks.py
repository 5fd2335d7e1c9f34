"""Positions in slices."""

import pytest
import torch

from stages.chunks import CPU_LOGITS, DEVICE_LOGITS, chunks

HALF = CPU_LOGITS // 2


@pytest.mark.parametrize(
    ("num_positions", "vocab_size", "sizes"),
    [(0, 50, [0]), (7, 50, [7]), (2, HALF, [2]), (5, HALF, [2, 2, 1]), (3, CPU_LOGITS + 1, [1, 1, 1])],
)
def test_every_position_is_in_one_slice(num_positions, vocab_size, sizes):
    parts = list(chunks(torch.empty(1).expand(num_positions, vocab_size)))
    assert [part.stop - part.start for part in parts] == sizes
    assert [place for part in parts for place in range(part.start, part.stop)] == list(range(num_positions))


def test_other_devices_take_more_at_once():
    (part,) = chunks(torch.empty(DEVICE_LOGITS // HALF, HALF, device="meta"))
    assert part == slice(0, DEVICE_LOGITS // HALF)
