"""Two workers of a real Ray make the very files that one makes, and their errors keep their name."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stages.artifacts import Model
from stages.errors import UserError
from stages.stage import Context
from tests.data.test_prepare import model, prepare, written  # noqa: F401
from tests.machine import ray_cluster  # noqa: F401
from tests.tiny import tiny_text

pytestmark = pytest.mark.usefixtures("ray_cluster")


def contents(context: Context) -> dict[str, bytes]:
    return {str(file.relative_to(context.out)): file.read_bytes() for file in context.out.rglob("*") if file.is_file()}


def test_the_number_of_workers_cannot_be_seen_and_errors_come_home(tmp_path: Path, model: Model):  # noqa: F811
    dataset, texts = written(tmp_path / "text", []), tiny_text(600)
    pq.write_table(pa.table({"text": [*texts, *texts[:20], None]}), dataset.shards[0], row_group_size=100)
    one, two = (
        prepare(dataset, model, tmp_path / str(workers), workers=workers, deduplicate="minhash") for workers in (1, 2)
    )
    assert contents(one) == contents(two)
    assert one.results["dropped_duplicates"] == 20
    pq.write_table(pa.table({"text": [*texts[:50], "\x00"]}), dataset.shards[0], row_group_size=10)
    with pytest.raises(UserError, match=r"shard-00000.parquet row 50 is no text: binary") as caught:
        prepare(dataset, model, tmp_path / "bad", workers=2)
    assert "on_bad_row: skip" in caught.value.fix
