from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stages.agent.conversation.records import read_trajectories, sample_trajectories
from stages.agent.handbook.records import read_handbook
from stages.agent.report.records import read_topics
from stages.artifacts import Dataset, DatasetCard, Model
from stages.data.private_examples import read_rows
from stages.data.reading import read_batches, read_texts, row_groups
from stages.data.windows import TokenWindows
from stages.errors import UserError
from stages.evaluate.needles_text import texts_of
from stages.evaluate.text_windows import text_windows
from stages.proxy.corrupt import ProxyCorrupt
from tests.data.test_screening import raw
from tests.proxy.runs import run
from tests.tiny import tiny_model

READERS = [
    lambda data: list(texts_of(data)),
    read_trajectories,
    lambda data: sample_trajectories(data, 3),
    read_handbook,
    read_topics,
]


@pytest.mark.parametrize("read", READERS)
def test_a_damaged_shard_is_named_whatever_reads_it(tmp_path: Path, read: Callable[[Dataset], object]):
    (tmp_path / "shard-00000.parquet").write_bytes(b"PAR1 and no more")
    DatasetCard("text", num_rows=8, num_bytes=8).write(tmp_path)
    with pytest.raises(UserError, match=r"shard-00000\.parquet cannot be read") as caught:
        read(Dataset(tmp_path))
    assert "regraft verify" in caught.value.fix


def test_a_damaged_shard_of_windows_is_named(tmp_path: Path):
    (tmp_path / "shard-00000.parquet").write_bytes(b"PAR1 and no more")
    DatasetCard("tokens", num_rows=8, num_bytes=8, num_tokens=64, sequence_length=8).write(tmp_path)
    with pytest.raises(UserError, match=r"shard-00000\.parquet cannot be read"):
        TokenWindows(Dataset(tmp_path), tmp_path / "cache")


def test_batches_hold_all_rows_of_a_shard_or_of_a_row_group(tmp_path: Path):
    shard = tmp_path / "shard.parquet"
    pq.write_table(pa.table({"a": range(10), "b": range(10)}), shard, row_group_size=4)
    assert [row for batch in read_batches(shard, 3) for row in batch.column("b").to_pylist()] == list(range(10))
    (batch,) = read_batches(shard, columns=["a"], row_group=1, first_row=4)
    assert batch.to_pydict() == {"a": [4, 5, 6, 7]}
    with pytest.raises(UserError, match="no column 'c'") as caught:
        next(read_batches(shard, columns=["a", "c"]))
    assert "found a, b" in caught.value.fix


READERS_OF_TEXT = [
    lambda data, _: list(texts_of(data)),
    lambda data, out: text_windows(Model(tiny_model(out / "model")), data, 8, None, "disjoint"),
    lambda data, out: run(ProxyCorrupt, {"text": data}, out),
    lambda data, _: read_rows(data, None, ()),
]


@pytest.mark.parametrize("read", READERS_OF_TEXT)
def test_a_row_that_is_no_text_is_named_whatever_reads_it(tmp_path: Path, read: Callable[[Dataset, Path], object]):
    data = raw(tmp_path / "text", [b"fine", "größer".encode("latin-1")])
    with pytest.raises(UserError, match=r"shard-00000\.parquet row 1 is not UTF-8"):
        read(data, tmp_path)


def test_a_label_that_is_no_text_is_refused_untold(tmp_path: Path):
    column = pa.Array.from_buffers(pa.string(), 1, pa.array(["größer".encode("latin-1")], pa.binary()).buffers())
    pq.write_table(pa.table({"text": ["fine"], "mood": column}), tmp_path / "shard-00000.parquet")
    DatasetCard("text", num_rows=1, num_bytes=4).write(tmp_path)
    with pytest.raises(UserError, match="a label in column 'mood' that is none of good"):
        read_rows(Dataset(tmp_path), "mood", ("good",))


def test_windows_of_another_length_than_declared_are_refused(tmp_path: Path):
    rows = pa.array([[1, 2, 3], [4, 5, 6]], pa.list_(pa.int32(), 3))
    pq.write_table(pa.table({"input_ids": rows}), tmp_path / "shard-00000.parquet")
    DatasetCard("tokens", num_rows=2, num_bytes=8, num_tokens=6, sequence_length=2).write(tmp_path)
    with pytest.raises(UserError, match=r"has a row of 3 tokens, dataset\.json declares 2"):
        TokenWindows(Dataset(tmp_path), tmp_path / "cache")


@pytest.mark.parametrize("read", [row_groups, lambda shard: next(read_texts(shard))])
def test_a_column_of_numbers_is_no_text(tmp_path: Path, read: Callable[[Path], object]):
    pq.write_table(pa.table({"text": [1, 2]}), tmp_path / "shard.parquet")
    with pytest.raises(UserError, match="has int64 in the column 'text', expected strings"):
        read(tmp_path / "shard.parquet")
