"""Contenders in turns: seconds of the clock and of the CPU, and their medians."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch


class Turn(NamedTuple):
    seconds: float
    cpu_seconds: float


def take_turns(contenders: Mapping[str, Callable[[], object]], repetitions: int) -> dict[str, Turn]:
    """The median turn of each contender, after one turn of each that does not count."""
    found: dict[str, list[Turn]] = {name: [] for name in contenders}
    for number in range(-1, repetitions):
        for name in list(contenders)[:: 1 if number % 2 else -1]:
            turn = _time(contenders[name])
            if number >= 0:
                found[name].append(turn)
    return {name: Turn(*map(statistics.median, zip(*turns, strict=True))) for name, turns in found.items()}


def _time(run: Callable[[], object]) -> Turn:
    start, cpu_start = time.perf_counter(), time.process_time()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return Turn(time.perf_counter() - start, time.process_time() - cpu_start)
