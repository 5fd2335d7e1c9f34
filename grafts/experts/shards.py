"""Writing a safetensors checkpoint tensor by tensor, block by block: what is in memory is one block.

The files are what `save_pretrained` writes: `model.safetensors`, or shards with an index. The same tensors give the
same bytes.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

CODES: Final = {torch.float64: "F64", torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}
"""Types that weights have, by their names in the format."""


@dataclass(frozen=True)
class Entry:
    """A tensor to write: `blocks` gives its rows from the first on, converted to `dtype` if they are of another."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    blocks: Callable[[], Iterable[Tensor]]

    @property
    def num_bytes(self) -> int:
        """Bytes in the file."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize


def write_shards(directory: Path, entries: Sequence[Entry], shard_bytes: int) -> Iterator[Entry]:
    """Write `entries` into files of at most `shard_bytes` (or one tensor) each; yields each when it is written."""
    shards = list(_cut(sorted(entries, key=lambda entry: (-entry.dtype.itemsize, entry.name)), shard_bytes))
    names = {number: _file_name(number, len(shards)) for number in range(len(shards))}
    for number, shard in enumerate(shards):
        yield from _write(directory / names[number], shard)
    if len(shards) > 1:
        place = {entry.name: names[number] for number, shard in enumerate(shards) for entry in shard}
        total = sum(entry.num_bytes for entry in entries)
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(place.items()))}
        text = json.dumps(index, indent=2, sort_keys=True) + "\n"
        (directory / "model.safetensors.index.json").write_text(text, encoding="utf-8")


def _cut(entries: Sequence[Entry], shard_bytes: int) -> Iterator[list[Entry]]:
    shard: list[Entry] = []
    for entry in entries:
        if shard and sum(each.num_bytes for each in shard) + entry.num_bytes > shard_bytes:
            yield shard
            shard = []
        shard.append(entry)
    yield shard


def _file_name(number: int, num_shards: int) -> str:
    return "model.safetensors" if num_shards == 1 else f"model-{number + 1:05d}-of-{num_shards:05d}.safetensors"


def _write(file: Path, entries: Sequence[Entry]) -> Iterator[Entry]:
    header = _header(entries)
    with file.open("wb") as stream:
        stream.write(struct.pack("<Q", len(header)) + header)
        for entry in entries:
            written = 0
            for block in entry.blocks():
                data = block.detach().to("cpu", entry.dtype).contiguous().view(-1).view(torch.uint8).numpy()
                written += stream.write(data.data)
                del block, data  # or they would be held while the next one is made
            assert written == entry.num_bytes, f"{entry.name}: {written} bytes made, {entry.num_bytes} announced"
            yield entry


def _header(entries: Sequence[Entry]) -> bytes:
    fields: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    start = 0
    for entry in entries:
        stop = start + entry.num_bytes
        fields[entry.name] = {"dtype": CODES[entry.dtype], "shape": list(entry.shape), "data_offsets": [start, stop]}
        start = stop
    text = json.dumps(fields, separators=(",", ":")).encode()
    return text + b" " * (-len(text) % 8)  # tensors start at a multiple of 8 bytes
