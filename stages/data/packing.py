"""Packing documents into windows of one length, and counting the text that made it in."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from stages.data.shards import ShardWriter, tokens_schema

FLUSH_WINDOWS = 512
"""Windows written at once."""


class Packed(NamedTuple):
    """A document in the stream: its number, its token ids without the separator, its UTF-8 bytes."""

    number: int
    num_tokens: int
    num_bytes: int


class Packer:
    """Joins documents by a separator into one stream of ids, cut into windows [N, T]; the last partial one is dropped.

    `capacity` stops it after that many windows. `num_bytes` counts the UTF-8 bytes of text behind the windows written,
    without the part of a document that fell off the end. `apart` writes the position of each token in its document
    beside it, from 0 at the start of every document and every window.
    """

    def __init__(
        self, directory: Path, length: int, separator: tuple[list[int], int], capacity: int | None, apart: bool = False
    ) -> None:
        self.length, self.capacity = length, capacity
        self.num_documents = self.num_tail_tokens = self.num_bytes = 0
        self._separator, self._separator_bytes = np.array(separator[0], np.int32), separator[1]
        self._writer = ShardWriter(directory, tokens_schema(length, apart))
        self._apart = apart
        self._pieces: list[np.ndarray] = []
        self._starts: list[int] = []
        """Where documents start in the pieces."""
        self._waiting = 0
        """Tokens in the pieces."""
        self._recent: deque[Packed] = deque()
        self._recent_tokens = 0

    @property
    def num_windows(self) -> int:
        """Windows written."""
        return self._writer.num_rows

    @property
    def full(self) -> bool:
        """Whether the capacity is reached."""
        return self.capacity is not None and self.num_windows + self._waiting // self.length >= self.capacity

    def add(self, number: int, ids: np.ndarray, num_bytes: int) -> None:
        """Append a document: its number, its token ids (int32) and the UTF-8 bytes of its text."""
        if self.full:
            return
        self._starts.append(self._waiting)
        self._pieces += [ids, self._separator]
        self._waiting += len(ids) + len(self._separator)
        self.num_documents += 1
        self.num_bytes += num_bytes + self._separator_bytes
        self._remember(Packed(number, len(ids), num_bytes))
        if self._waiting >= FLUSH_WINDOWS * self.length:
            self._flush()

    def close(self, bytes_before: Callable[[int, int], int]) -> None:
        """Write the last full windows and take the tail off the counts.

        `bytes_before(number, tokens)` gives the UTF-8 bytes of a document before its token of that index.
        """
        self._flush()
        self._writer.close()
        self.num_tail_tokens = self._waiting
        self.num_bytes -= self._bytes_of_last(self._waiting, bytes_before)

    def _flush(self) -> None:
        room = self._waiting // self.length
        if self.capacity is not None:
            room = min(room, self.capacity - self.num_windows)
        if not room:
            return
        stream, cut = np.concatenate(self._pieces), room * self.length
        ids_NT = stream[:cut].reshape(room, self.length)
        positions_NT = self._positions(room) if self._apart else None
        self._writer.write_windows(ids_NT, positions_NT)
        self._pieces, self._waiting = [stream[cut:].copy()], self._waiting - cut
        self._starts = [start - cut for start in self._starts if start >= cut]

    def _positions(self, num_windows: int) -> np.ndarray:
        """The place of each token in its document or, where that began earlier, in its window, int32 [N, T]."""
        begins = np.zeros(num_windows * self.length, bool)
        begins[[start for start in self._starts if start < len(begins)]] = True
        begins_NT = begins.reshape(num_windows, self.length)
        begins_NT[:, 0] = True
        index_T = np.arange(self.length, dtype=np.int32)
        return index_T - np.maximum.accumulate(np.where(begins_NT, index_T, 0), axis=1)

    def _remember(self, document: Packed) -> None:
        """Keep the last documents of the stream, as many as a dropped tail can reach into."""
        self._recent.append(document)
        self._recent_tokens += document.num_tokens + len(self._separator)
        while self._recent_tokens - (oldest := self._recent[0].num_tokens + len(self._separator)) >= self._waiting:
            self._recent.popleft()
            self._recent_tokens -= oldest

    def _bytes_of_last(self, num_tokens: int, bytes_before: Callable[[int, int], int]) -> int:
        """UTF-8 bytes of text behind the last `num_tokens` of the stream."""
        num_bytes = 0
        for document in reversed(self._recent):
            if num_tokens <= 0:
                break
            num_bytes += self._separator_bytes
            num_tokens -= len(self._separator)
            if num_tokens >= document.num_tokens:
                num_bytes += document.num_bytes
            elif num_tokens > 0:
                num_bytes += document.num_bytes - bytes_before(document.number, document.num_tokens - num_tokens)
            num_tokens -= document.num_tokens
        return num_bytes
