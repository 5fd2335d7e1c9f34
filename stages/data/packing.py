"""Packing documents into windows of one length, and counting the text that made it in."""

from __future__ import annotations

from collections import deque
from pathlib import Path

import numpy as np

from stages.data.shards import ShardWriter, tokens_schema

FLUSH_WINDOWS = 512
"""Windows written at once."""


class Packer:
    """Joins documents by a separator into one stream of ids, cut into windows [N, T]; the last partial one is dropped.

    `capacity` stops it after that many windows. `num_bytes` counts the UTF-8 bytes of text behind the windows written,
    without the part of a document that fell off the end.
    """

    def __init__(self, directory: Path, length: int, separator: tuple[list[int], int], capacity: int | None) -> None:
        self.length, self.capacity = length, capacity
        self.num_documents = self.num_tail_tokens = self.num_bytes = 0
        self._separator, self._separator_bytes = separator
        self._writer = ShardWriter(directory, tokens_schema(length))
        self._stream: list[int] = []
        self._recent: deque[tuple[str, list[int]]] = deque()
        self._recent_tokens = 0

    @property
    def num_windows(self) -> int:
        """Windows written."""
        return self._writer.num_rows

    @property
    def full(self) -> bool:
        """Whether the capacity is reached."""
        ready = self.num_windows + len(self._stream) // self.length
        return self.capacity is not None and ready >= self.capacity

    def add(self, text: str, ids: list[int], starts: list[int]) -> None:
        """Append a document: its text, its token ids, and the character where each token starts."""
        if self.full:
            return
        self._stream += [*ids, *self._separator]
        self.num_documents += 1
        self.num_bytes += len(text.encode()) + self._separator_bytes
        self._remember(text, starts)
        if len(self._stream) >= FLUSH_WINDOWS * self.length:
            self._flush()

    def close(self) -> None:
        """Write the last full windows and take the tail off the counts."""
        self._flush()
        self._writer.close()
        self.num_tail_tokens = len(self._stream)
        self.num_bytes -= self._bytes_of_last(len(self._stream))

    def _flush(self) -> None:
        room = len(self._stream) // self.length
        if self.capacity is not None:
            room = min(room, self.capacity - self.num_windows)
        if room:
            ids = np.array(self._stream[: room * self.length], dtype=np.int32)
            self._writer.write_windows(ids.reshape(room, self.length))
            self._stream = self._stream[room * self.length :]

    def _remember(self, text: str, starts: list[int]) -> None:
        """Keep the last documents of the stream, as many as a dropped tail can reach into."""
        self._recent.append((text, starts))
        self._recent_tokens += len(starts) + len(self._separator)
        while self._recent_tokens - (oldest := len(self._recent[0][1]) + len(self._separator)) >= len(self._stream):
            self._recent.popleft()
            self._recent_tokens -= oldest

    def _bytes_of_last(self, num_tokens: int) -> int:
        """UTF-8 bytes of text behind the last `num_tokens` of the stream."""
        num_bytes = 0
        for text, starts in reversed(self._recent):
            if num_tokens <= 0:
                break
            num_bytes += self._separator_bytes
            num_tokens -= len(self._separator)
            if num_tokens > 0:
                num_bytes += len(text[starts[max(0, len(starts) - num_tokens)] :].encode())
            num_tokens -= len(starts)
        return num_bytes
