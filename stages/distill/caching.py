"""Running a teacher over packed windows and writing down what it says, one shard after the other.

A shard is finished in `scratch` and renamed, so a run that was cut short goes on with the next one. Every shard is made
of the same windows whatever the batch size, so equal work gives equal bytes.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from grafts.arithmetic import dtype_name
from grafts.loader import load_model
from stages.data.windows import TokenWindows
from stages.distill.cache_card import CacheCard
from stages.distill.teachers import TopTeacher
from stages.errors import StoppedError
from stages.evaluate.distance import chunk_positions
from stages.evaluate.loading import DEVICE
from stages.evaluate.prediction import Predictor
from stages.stage import Progress
from stages.training.precision import torch_dtype

if TYPE_CHECKING:
    from stages.distill.cache import CacheParameters
    from stages.stage import Context

SHARD_TOKENS: Final = 2**16
"""Tokens of a shard: 16 MB with 64 kept at each position, and what a run that is cut short may lose."""
SHORT_IDS: Final = 2**16
"""Vocabularies up to this size are stored in two bytes a token."""


def write_cache(params: CacheParameters, context: Context) -> dict[str, float]:
    """Fill output `cache`; the figures of it."""
    data, teacher = context.dataset("data"), context.model("teacher")
    windows = TokenWindows(data, context.scratch / "windows")
    dtype = torch_dtype(params.precision)
    arithmetic = dtype_name(dtype)
    context.say(f"the teacher computes in {arithmetic}")
    predictor = Predictor(load_model(teacher.path, dtype=dtype).to(DEVICE))
    writer = _Writer(params, predictor, windows, context.progress)
    # `auto` may be another arithmetic on the machine that goes on: a cache is of one.
    shards = list(_shards(windows, context.scratch / f"shards-{arithmetic}"))
    started = time.monotonic()
    for number, (file, rows) in enumerate(shards):
        if context.stopping():
            raise StoppedError(f"stopped after shard {number} of {len(shards)}, which the next run goes on from")
        if not file.exists():
            writer.write(file, rows)
    seconds, out = time.monotonic() - started, context.output("cache")
    for file, _ in shards:
        shutil.move(file, out / file.name)
    data.card.write(out)
    CacheCard(teacher.digest, data.digest, params.top_k, params.temperature, params.stored).write(out)
    figures = _figures(out, len(windows) * windows.sequence_length)
    return {**figures, "tokens_per_second": writer.num_rows * windows.sequence_length / seconds}


def _shards(windows: TokenWindows, directory: Path) -> Iterator[tuple[Path, range]]:
    directory.mkdir(parents=True, exist_ok=True)
    step = math.ceil(SHARD_TOKENS / windows.sequence_length)
    for number, start in enumerate(range(0, len(windows), step)):
        yield directory / f"shard-{number:05d}.parquet", range(start, min(start + step, len(windows)))


class _Writer:
    def __init__(self, params: CacheParameters, teacher: Predictor, windows: TokenWindows, progress: Progress) -> None:
        self.params, self.teacher, self.windows, self.progress = params, teacher, windows, progress
        self.num_rows = 0

    def write(self, file: Path, rows: range) -> None:
        """One shard, in one atomic step."""
        size, part, tables = self.params.batch_size, file.with_suffix(".part"), []
        for start in range(0, len(rows), size):
            batch = rows[start : start + size]
            tables.append(self._table(batch))
            self.num_rows += len(batch)
            length = self.windows.sequence_length
            self.progress(batch.stop * length, len(self.windows) * length, "tokens")
        pq.write_table(pa.concat_tables(tables).combine_chunks(), part, compression="zstd")
        part.replace(file)

    def _table(self, rows: range) -> pa.Table:
        """What the teacher says on the windows `rows`."""
        ids_BT = self.windows.stack(rows)
        said = self.teacher.predict(ids_BT)
        size = chunk_positions(said.vocab_size)
        starts = range(0, said.num_positions, size)
        parts = [self._top(said.read(start, min(start + size, said.num_positions))) for start in starts]
        top_ids, log_probs, tail = (np.concatenate(column) for column in zip(*parts, strict=True))
        ids_type = pa.uint16() if said.vocab_size <= SHORT_IDS else pa.int32()
        columns = {
            "input_ids": _column(ids_BT.numpy(), pa.int32(), len(rows)),
            "top_ids": _column(top_ids, ids_type, len(rows)),
            "top_log_probs": _column(
                log_probs.astype(self.params.stored), pa.from_numpy_dtype(self.params.stored), len(rows)
            ),
            "tail_log_mass": _column(tail, pa.float32(), len(rows)),
        }
        return pa.table(columns)

    def _top(self, logits_CV: torch.Tensor) -> tuple[np.ndarray, ...]:
        top = TopTeacher.of(logits_CV, self.params.top_k, self.params.temperature)
        return tuple(x.cpu().numpy() for x in (top.ids, top.log_probs, top.tail))


def _column(values: np.ndarray, kind: pa.DataType, num_rows: int) -> pa.FixedSizeListArray:
    return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1), kind), values.size // num_rows)


def _figures(directory: Path, num_tokens: int) -> dict[str, float]:
    """Mean mass outside the cache, and what a token of the data takes on disk."""
    shards = sorted(directory.glob("shard-*.parquet"))
    tails = [
        pq.read_table(shard, columns=["tail_log_mass"])[0].combine_chunks().flatten().to_numpy() for shard in shards
    ]
    size = sum(shard.stat().st_size for shard in shards)
    return {
        "tail_mass": float(np.exp(np.concatenate(tails), dtype=np.float64).mean()),
        "bytes_per_token": size / num_tokens,
    }
