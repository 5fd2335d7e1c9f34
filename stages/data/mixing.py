"""Working out the sequence of a mixture, and writing its windows."""

from __future__ import annotations

import hashlib
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from stages.artifacts import Dataset
from stages.data.interleaving import Interleaving
from stages.data.shards import SHARD_BYTES, ShardWriter, tokens_schema
from stages.data.windows import TokenWindows
from stages.errors import StoppedError, UserError
from stages.stage import Context

WRITTEN_WINDOWS = 512
"""Windows held in memory at once."""


@dataclass(frozen=True)
class Mixture:
    """Which window follows which: `picks` [N] are indices into `names`, `windows` [N] indices into that dataset."""

    names: Sequence[str]
    shares: Sequence[Fraction]
    sizes: Sequence[int]
    picks: np.ndarray
    windows: np.ndarray

    def table(self) -> list[dict[str, Any]]:
        """Of each dataset: its share, windows used and available, epochs, and the largest |count - n·share|, in
        windows, after any number n of windows.
        """
        return [
            {
                "dataset": name,
                "share": float(self.shares[index]),
                "windows": (used := int((self.picks == index).sum())),
                "available": self.sizes[index],
                "epochs": used / self.sizes[index],
                "largest_deviation": self._deviation(index),
            }
            for index, name in enumerate(self.names)
        ]

    def _deviation(self, index: int) -> float:
        counts = (self.picks == index).cumsum()
        return float(np.abs(counts - np.arange(1, len(counts) + 1) * float(self.shares[index])).max())


def plan(
    weights: Mapping[str, Fraction], sizes: Mapping[str, int], num_windows: int | None, max_epochs: int, seed: int
) -> Mixture:
    """The sequence of `num_windows` windows, or without it until a dataset of `sizes` has run out.

    A function of names, weights, sizes and seed; not of the order in which the datasets are given. Raises UserError
    when a dataset would have to be gone through more than `max_epochs` times.
    """
    names = sorted(sizes, key=lambda name: _digest(seed, name))
    sequence = Interleaving([weights[name] for name in names])
    room = [sizes[name] * max_epochs for name in names]
    picks: list[int] = []
    while num_windows is None or len(picks) < num_windows:
        picked = next(sequence)
        if sequence.counts[picked] > room[picked]:
            if num_windows is None:
                break
            _refuse(names[picked], sizes[names[picked]], sequence.shares[picked], num_windows, max_epochs)
        picks.append(picked)
    picks_N, windows_N = np.array(picks, np.int32), np.empty(len(picks), np.int64)
    for index, name in enumerate(names):
        chosen = np.flatnonzero(picks_N == index)
        windows_N[chosen] = _order(seed, name, sizes[name], len(chosen))
    return Mixture(names, sequence.shares, [sizes[name] for name in names], picks_N, windows_N)


def write(mixture: Mixture, data: Mapping[str, Dataset], context: Context) -> None:
    """Write the windows of `mixture` into the output `data`, going on after the shards that an earlier try left."""
    cache, folder = context.scratch / "windows", context.scratch / "shards"
    windows = [TokenWindows(data[name], cache, apart=True) for name in mixture.names]
    _require_alike(mixture.names, windows)
    folder.mkdir(parents=True, exist_ok=True)
    step = max(1, SHARD_BYTES // (4 * windows[0].sequence_length))
    starts = range(0, len(mixture.picks), step)
    for number, start in enumerate(starts):
        if not (folder / f"shard-{number:05d}.parquet").exists():
            _write_shard(mixture, windows, range(start, min(start + step, len(mixture.picks))), folder, number)
        context.progress(min(start + step, len(mixture.picks)), len(mixture.picks), "windows")
        if context.stopping():
            raise StoppedError("stopped while mixing; the next run goes on from the shards that are done")
    for number in range(len(starts)):
        name = f"shard-{number:05d}.parquet"
        shutil.move(folder / name, context.output("data") / name)
    shutil.rmtree(cache)


def _write_shard(mixture: Mixture, windows: Sequence[TokenWindows], span: range, folder: Path, number: int) -> None:
    part = folder / "part"
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    schema = tokens_schema(windows[0].sequence_length, windows[0].apart)
    with ShardWriter(part, schema, shard_bytes=2 * SHARD_BYTES) as writer:
        for start in range(span.start, span.stop, WRITTEN_WINDOWS):
            block = slice(start, min(start + WRITTEN_WINDOWS, span.stop))
            writer.write_windows(*_gather(mixture.picks[block], mixture.windows[block], windows))
    (part / "shard-00000.parquet").replace(folder / f"shard-{number:05d}.parquet")


def _gather(
    picks: np.ndarray, chosen: np.ndarray, windows: Sequence[TokenWindows]
) -> tuple[np.ndarray, np.ndarray | None]:
    """Ids and, where documents are kept apart, positions of the chosen windows, int32 [N, T]."""
    ids_NT = np.empty((len(picks), windows[0].sequence_length), np.int32)
    positions_NT = np.empty_like(ids_NT) if windows[0].apart else None
    for index, source in enumerate(windows):
        rows = np.flatnonzero(picks == index)
        if len(rows):
            ids_NT[rows] = source.stack(chosen[rows].tolist()).numpy()
            if positions_NT is not None and (positions := source.positions(chosen[rows].tolist())) is not None:
                positions_NT[rows] = positions.numpy()
    return ids_NT, positions_NT


def _require_alike(names: Sequence[str], windows: Sequence[TokenWindows]) -> None:
    for name, own in zip(names, windows, strict=True):
        if own.apart != windows[0].apart:
            told = {True: "attention: document", False: "attention: window"}
            raise UserError(
                f"{names[0]} was prepared with {told[windows[0].apart]}, {name} with {told[own.apart]}",
                where="data",
                fix="prepare all datasets of a mixture with the same attention",
            )


def _refuse(name: str, size: int, share: Fraction, num_windows: int, max_epochs: int) -> None:
    needed = math.ceil(num_windows * share)
    raise UserError(
        f"{name} has {size} windows, a share of {float(share):.4g} of {num_windows} windows takes about {needed}: "
        f"{needed / size:.2f} epochs, max_epochs is {max_epochs}",
        fix=f"set max_epochs to {math.ceil((needed + 1) / size)}, lower tokens or the weight of {name}",
    )


def _order(seed: int, name: str, size: int, count: int) -> np.ndarray:
    """The first `count` windows of a dataset of `size`, one permutation after another."""
    epochs = range(-(-count // size))
    orders = [np.random.Generator(np.random.PCG64(_digest(seed, name, epoch))).permutation(size) for epoch in epochs]
    return np.concatenate([np.zeros(0, np.int64), *orders])[:count]


def _digest(*parts: object) -> int:
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest(), "big")
