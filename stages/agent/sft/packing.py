"""Conversations as rows for training: ids, labels where the assistant speaks, positions that start again.

Conversations are never cut: each lies whole in one row, beside others while they fit (first fit, longest first). The
positions tell attention where one ends and the next begins.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stages.training.cross_entropy import IGNORED


@dataclass(frozen=True)
class Conversation:
    """Token ids [L] and which of them are the assistant's own."""

    ids: list[int]
    mask: list[bool]


@dataclass(frozen=True)
class Packed:
    """Rows [N, T] of int32: `ids`, `labels` of the same tokens (`IGNORED` where not the assistant's), `positions`.

    What fills a row up is a conversation of its own, of padding; where each row has one, its positions go on into the
    padding, which nothing sees, so that models without a way to begin anew can read it.
    """

    ids: np.ndarray
    labels: np.ndarray
    positions: np.ndarray

    @property
    def several(self) -> bool:
        """Whether a token that is learnt from has another conversation before it in its row."""
        begun = np.logical_or.accumulate(self.positions[:, 1:] == 0, axis=1)
        return bool((begun & (self.labels[:, 1:] != IGNORED)).any())

    def save(self, directory: Path) -> None:
        """Write the rows for `load`."""
        directory.mkdir(parents=True, exist_ok=True)
        np.save(directory / "rows.npy", np.stack([self.ids, self.labels, self.positions]))

    @classmethod
    def load(cls, directory: Path) -> Packed:
        """The rows in `directory`, mapped rather than read."""
        return cls(*np.load(directory / "rows.npy", mmap_mode="r"))


def pack(conversations: Sequence[Conversation], length: int, pad_id: int, *, several: bool) -> Packed:
    """Rows of `length` tokens; without `several` a conversation each. None may be longer than a row."""
    rows = place([len(conversation.ids) for conversation in conversations], length, several=several)
    ids = np.full((len(rows), length), pad_id, np.int32)
    labels = np.full((len(rows), length), IGNORED, np.int32)
    positions = np.zeros((len(rows), length), np.int32)
    for number, row in enumerate(rows):
        start = 0
        for index in row:
            ids_L, mask_L = np.array(conversations[index].ids), np.array(conversations[index].mask)
            part = slice(start, start + len(ids_L))
            ids[number, part], positions[number, part] = ids_L, np.arange(len(ids_L))
            labels[number, part] = np.where(mask_L, ids_L, IGNORED)
            labels[number, start] = IGNORED  # nothing of its own comes before it
            start = part.stop
        positions[number, start:] = np.arange(length - start) if several else np.arange(start, length)
    return Packed(ids, labels, positions)


def place(lengths: Sequence[int], length: int, *, several: bool) -> list[list[int]]:
    """Which conversations lie in which row."""
    assert max(lengths, default=0) <= length, f"a conversation of {max(lengths)} tokens in rows of {length}"
    if not several:
        return [[index] for index in range(len(lengths))]
    rows: list[list[int]] = []
    room: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        number = next((row for row, left in enumerate(room) if left >= lengths[index]), len(rows))
        if number == len(rows):
            rows.append([])
            room.append(length)
        rows[number].append(index)
        room[number] -= lengths[index]
    return rows
