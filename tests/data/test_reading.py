from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stages.agent.conversation.records import read_trajectories, sample_trajectories
from stages.agent.handbook.records import read_handbook
from stages.agent.report.records import read_topics
from stages.artifacts import Dataset, DatasetCard
from stages.data.reading import read_batches, read_texts, row_groups
from stages.data.windows import TokenWindows
from stages.errors import UserError
from stages.evaluate.needles_text import texts_of

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


@pytest.mark.parametrize("read", [row_groups, lambda shard: next(read_texts(shard))])
def test_a_column_of_numbers_is_no_text(tmp_path: Path, read: Callable[[Path], object]):
    pq.write_table(pa.table({"text": [1, 2]}), tmp_path / "shard.parquet")
    with pytest.raises(UserError, match="has int64 in the column 'text', expected strings"):
        read(tmp_path / "shard.parquet")
