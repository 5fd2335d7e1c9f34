"""The peak memory of `data.prepare`, in a process of its own, does not grow with the text."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stages.artifacts import DatasetCard, Model
from tests.data.test_prepare import model  # noqa: F401
from tests.tiny import tiny_text

SCRIPT = """
import sys
from pathlib import Path
from stages.memory import peak_memory_bytes
from stages.artifacts import Dataset, Model
from stages.data.prepare import PrepareData, PrepareDataParams
from stages.stage import Context
text, model, out = map(Path, sys.argv[1:])
stage = PrepareData(PrepareDataParams(sequence_length=32, max_tokens=32_000, max_heldout_tokens=32_000))
context = Context({"text": Dataset(text), "model": Model(model)}, out / "out", out / "scratch")
stage.run(context)
print(int(context.results["kept_documents"]), peak_memory_bytes())
"""
DOCUMENTS = 1000


def corpus(directory: Path, times: int) -> int:
    """Write a corpus of `times` 1,000 documents of 6 KB; its characters."""
    directory.mkdir()
    paragraphs = tiny_text(40)
    schema, size = pa.schema([("text", pa.string())]), 0
    with pq.ParquetWriter(directory / "shard-00000.parquet", schema) as writer:
        for copy in range(times):
            texts = [f"{copy} {n} " + "\n".join(paragraphs[n % 30 : n % 30 + 10]) for n in range(DOCUMENTS)]
            writer.write_table(pa.table({"text": texts}, schema))
            size += sum(map(len, texts))
    DatasetCard("text", num_rows=times * DOCUMENTS, num_bytes=size).write(directory)
    return size


def peak(directory: Path, times: int, model: Model) -> int:  # noqa: F811
    """Least peak memory of three runs, in bytes: what allocators keep besides differs from run to run."""
    peaks = []
    for run in range(3):
        out = directory / f"out-{times}-{run}"
        command = [sys.executable, "-c", SCRIPT, directory / str(times), model.path, out]
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True)
        kept, found = map(int, done.stdout.split())
        assert kept == times * DOCUMENTS
        peaks.append(found)
    return min(peaks)


@pytest.mark.alone
def test_ten_times_the_text_takes_the_same_memory(tmp_path: Path, model: Model):  # noqa: F811
    sizes = [corpus(tmp_path / str(times), times) for times in (1, 10)]
    assert sizes[1] - sizes[0] > 40 * 2**20
    assert peak(tmp_path, 10, model) - peak(tmp_path, 1, model) < 16 * 2**20
