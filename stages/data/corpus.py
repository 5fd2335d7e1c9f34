"""The second step over a corpus: unique documents in one Arrow file, in an order that does not depend on how they came.

Everything is decided in the order of the documents' digests, so neither the order of the input nor the portions it was
screened in have a say. Texts and signatures stay on disk; memory holds some sixty bytes a document.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from stages.data.drops import SAMPLES, Drops
from stages.data.minhash import NUM_HASHES, band_keys, band_rows, near_duplicates
from stages.data.reading import BATCH_DOCUMENTS
from stages.data.screening import Portion
from stages.data.shards import TEXT
from stages.data.shingles import scramble

BLOCK_ROWS = 2**16
"""Signatures read at once."""
MAPPED_DOCUMENTS = 16
"""Documents read through one mapping of the file: the system maps more around each, up to the whole file in the end."""


@dataclass(frozen=True)
class Corpus:
    """N documents in one Arrow file, in batches of `BATCH_DOCUMENTS`."""

    file: Path
    digests: np.ndarray
    """Of their texts, uint64 [N, 2]."""
    splits: np.ndarray
    """What decides their side of the split, uint64 [N]."""

    def __len__(self) -> int:
        return len(self.digests)

    def order(self, seed: int) -> np.ndarray:
        """The documents' numbers in the order of `seed`, int64 [N]. It depends on seed and texts alone."""
        salt = np.frombuffer(hashlib.blake2b(str(seed).encode(), digest_size=8).digest(), np.uint64)
        high, low = self.digests.T
        return np.lexsort((self.splits, low, scramble(high ^ salt)))


def read_documents(file: Path, numbers: Sequence[int]) -> list[str]:
    """The documents of a `Corpus` with those numbers, in that order."""
    starts = range(0, len(numbers), MAPPED_DOCUMENTS)
    return [text for start in starts for text in _mapped(file, numbers[start : start + MAPPED_DOCUMENTS])]


def _mapped(file: Path, numbers: Sequence[int]) -> list[str]:
    with pa.memory_map(str(file)) as source, pa.ipc.open_file(source) as reader:
        places = (divmod(int(number), BATCH_DOCUMENTS) for number in numbers)
        return [reader.get_batch(batch).column(0)[row].as_py() for batch, row in places]


class Portions:
    """The documents that portions kept, numbered through in their order, read where they lie."""

    def __init__(self, portions: Sequence[Portion]) -> None:
        self.files = [portion.file for portion in portions]
        self._open: tuple[int, list[pa.RecordBatch]] = (-1, [])
        sizes = [[batch.num_rows for batch in self._batches(number)] for number in range(len(self.files))]
        self._ends = np.cumsum([0, *(sum(batches) for batches in sizes)])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Everything, in order."""
        for number in range(len(self.files)):
            yield from self._batches(number)

    def row(self, index: int) -> dict[str, object]:
        """One document with all its columns."""
        number = bisect_right(self._ends, index) - 1
        rest = index - int(self._ends[number])
        for batch in self._batches(number):
            if rest < batch.num_rows:
                return batch.slice(rest, 1).to_pylist()[0]
            rest -= batch.num_rows
        raise IndexError(index)

    def _batches(self, number: int) -> list[pa.RecordBatch]:
        """The batches of a file, mapped; the last file asked for stays open."""
        if self._open[0] != number:
            reader = pa.ipc.open_file(pa.memory_map(str(self.files[number])))
            self._open = number, [reader.get_batch(batch) for batch in range(reader.num_record_batches)]
        return self._open[1]


def unite(portions: Sequence[Portion], file: Path, drops: Drops, *, exact: bool, similarity: float | None) -> Corpus:
    """Write what the portions kept into `file` without the repetitions, which are added to `drops`.

    `exact` drops documents equal to an earlier one; `similarity` those whose MinHash signatures say a Jaccard
    similarity of at least that. Of each group the document with the smallest digest stays.
    """
    kept = Portions(portions)
    digests_N2 = np.concatenate([np.zeros((0, 2), np.uint64), *(_digests(batch) for batch in kept.batches())])
    splits_N = np.concatenate([np.zeros(0, np.uint64), *(_splits(batch) for batch in kept.batches())])
    canonical = np.lexsort((splits_N, digests_N2[:, 1], digests_N2[:, 0]))
    stays = np.ones(len(kept), bool)
    if exact:
        sorted_N2 = digests_N2[canonical]
        repeats = np.zeros(len(kept), bool)
        repeats[1:] = (sorted_N2[1:] == sorted_N2[:-1]).all(1)
        stays[canonical[repeats]] = False
        _tell(drops, "duplicates", kept, canonical[repeats], lambda _: "equals a document that stays")
    if similarity is not None:
        unique = canonical[stays[canonical]]
        first = _first_of_group(kept, unique, similarity, file.with_suffix(".signatures"))
        twins = np.flatnonzero(first != np.arange(len(unique)))
        original = dict(zip(unique[twins].tolist(), unique[first[twins]].tolist(), strict=True))
        stays[unique[twins]] = False
        _tell(
            drops,
            "near_duplicates",
            kept,
            unique[twins],
            lambda index: f"resembles {kept.row(original[index])['where']}",
        )
    _write(kept, stays, file)
    return Corpus(file, digests_N2[stays], splits_N[stays])


def _first_of_group(kept: Portions, unique: np.ndarray, similarity: float, file: Path) -> np.ndarray:
    """For each document of `unique` (in canonical order) the place of the first of its group there."""
    place = np.full(len(kept), -1)
    place[unique] = np.arange(len(unique))
    signatures_NH = np.memmap(file, np.uint32, "w+", shape=(max(1, len(unique)), NUM_HASHES))
    start = 0
    for batch in kept.batches():
        places = place[start : start + batch.num_rows]
        signatures_NH[places[places >= 0]] = _fixed(batch, "signature", np.uint32)[places >= 0]
        start += batch.num_rows
    rows = band_rows(similarity)
    bands = (_band(signatures_NH[: len(unique)], rows, number) for number in range(NUM_HASHES // rows))
    first = near_duplicates(bands, signatures_NH.__getitem__, len(unique), similarity)
    file.unlink()
    return first


def _band(signatures_NH: np.ndarray, rows: int, band: int) -> np.ndarray:
    """The keys of one band, uint64 [N], block by block."""
    starts = range(0, len(signatures_NH), BLOCK_ROWS)
    blocks = [band_keys(signatures_NH[start : start + BLOCK_ROWS], rows, band) for start in starts]
    return np.concatenate([np.zeros(0, np.uint64), *blocks])


def _digests(batch: pa.RecordBatch) -> np.ndarray:
    return _fixed(batch, "digest", np.uint64)


def _splits(batch: pa.RecordBatch) -> np.ndarray:
    return batch.column(batch.schema.get_field_index("split")).to_numpy()


def _fixed(batch: pa.RecordBatch, name: str, kind: type[np.generic]) -> np.ndarray:
    """A column of fixed-size binaries as an array [rows, values]."""
    column = batch.column(batch.schema.get_field_index(name))
    width = column.type.byte_width
    data = np.frombuffer(column.buffers()[1], np.uint8)[column.offset * width : (column.offset + len(column)) * width]
    return data.reshape(len(column), width).view(kind)


def _tell(drops: Drops, reason: str, kept: Portions, dropped: np.ndarray, why: Callable[[int], str]) -> None:
    """Count the dropped documents, which are in the order of their digests, and show the first."""
    for index in dropped[:SAMPLES].tolist():
        row = kept.row(index)
        drops.add(reason, bytes(row["digest"]), str(row["where"]), why(index), str(row["text"]))  # type: ignore
    drops.counts[reason] += max(0, len(dropped) - SAMPLES)


def _write(kept: Portions, stays: np.ndarray, file: Path) -> None:
    """Write the documents that stay in batches of `BATCH_DOCUMENTS`."""
    start, waiting = 0, pa.table({"text": pa.array([], pa.string())})
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_file(sink, TEXT) as writer:
        for batch in kept.batches():
            mask = pa.array(stays[start : start + batch.num_rows])
            start += batch.num_rows
            waiting = pa.concat_tables([waiting, pa.table([batch.filter(mask).column(0)], schema=TEXT)])
            while waiting.num_rows >= BATCH_DOCUMENTS:
                _write_batch(writer, waiting.slice(0, BATCH_DOCUMENTS))
                waiting = waiting.slice(BATCH_DOCUMENTS)
        if waiting.num_rows:
            _write_batch(writer, waiting)


def _write_batch(writer: pa.ipc.RecordBatchFileWriter, table: pa.Table) -> None:
    writer.write_batch(table.combine_chunks().to_batches()[0])
