"""Contenders in turns: seconds of the clock and of the CPU, of every turn."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

from benchmarks.findings import CPU_SECONDS, SECONDS, Measure


class Turn(NamedTuple):
    seconds: float
    cpu_seconds: float


class Turns(tuple[Turn, ...]):
    """The turns of one contender, in order."""

    @property
    def seconds(self) -> float:
        """Their median."""
        return statistics.median(turn.seconds for turn in self)

    @property
    def cpu_seconds(self) -> float:
        """Their median."""
        return statistics.median(turn.cpu_seconds for turn in self)

    def figures(self) -> dict[Measure, list[float]]:
        """For a row."""
        return {SECONDS: [turn.seconds for turn in self], CPU_SECONDS: [turn.cpu_seconds for turn in self]}


def take_turns(contenders: Mapping[str, Callable[[], object]], repetitions: int) -> dict[str, Turns]:
    """The turns of each contender, each in the opposite order of the one before, after one that does not count."""
    found: dict[str, list[Turn]] = {name: [] for name in contenders}
    for _, name in in_turns(contenders, 1 + repetitions):
        found[name].append(_time(contenders[name]))
    return {name: Turns(turns[1:]) for name, turns in found.items()}


def in_turns(contenders: Iterable[str], rounds: int) -> Iterator[tuple[int, str]]:
    """Each contender once a round, in the opposite order of the round before, with the round's number from 1."""
    names = list(contenders)
    for number in range(rounds):
        yield from ((number + 1, name) for name in names[:: -1 if number % 2 else 1])


def _time(run: Callable[[], object]) -> Turn:
    import torch  # not where this module is: those who time processes are to stay small

    start, cpu_start = time.perf_counter(), time.process_time()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return Turn(time.perf_counter() - start, time.process_time() - cpu_start)
