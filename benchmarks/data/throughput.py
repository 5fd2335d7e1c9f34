"""Tokenise and pack: seconds, CPU seconds and peak memory of each contender."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.data.peers import DATATROVE, python
from benchmarks.sources import PASSAGES, source_model
from stages.artifacts import Dataset, DatasetCard
from stages.data.shards import TEXT
from stages.source.dataset import SourceDataset, SourceDatasetParams
from stages.stage import Context

CONTENDERS = ("regraft", "datasets.map", "datatrove")


def compare(options: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as directory:
        work = Path(directory)
        task = _task(work, options, options.documents)
        found: dict[str, list[dict[str, float]]] = {name: [] for name in CONTENDERS}
        for number in range(options.repetitions):
            for name in CONTENDERS[:: 1 if number % 2 else -1]:
                found[name].append(_measure(name, task, work, options))
                print(f"{number + 1}/{options.repetitions} {name}: {found[name][-1]}", file=sys.stderr, flush=True)
    _machine()
    print(f"{task['documents']:,} documents, {task['characters']:,} characters, {options.repetitions} repetitions\n")
    print(f"{'':14} {'tokens':>10} {'MB/s':>8} {'min':>6} {'max':>6} {'CPU s':>7} {'peak MiB':>9} {'ratio':>6}")
    rates = {name: [task["bytes"] / row["seconds"] / 1e6 for row in rows] for name, rows in found.items()}
    best = max(statistics.median(rates[name]) for name in CONTENDERS[1:])
    for name, rows in found.items():
        middle = statistics.median(rates[name])
        cpu, peak = (statistics.median(row[key] for row in rows) for key in ("cpu_seconds", "peak_bytes"))
        print(
            f"{name:14} {rows[0]['tokens']:10,.0f} {middle:8.2f} {min(rates[name]):6.2f} {max(rates[name]):6.2f} "
            f"{cpu:7.2f} {peak / 2**20:9.0f} {middle / best:6.2f}"
        )
    print("\nratio: to the faster of the other two")


def memory(options: argparse.Namespace) -> None:
    _machine()
    print(f"{'documents':>10} {'text MiB':>9} {'peak MiB':>9}")
    for times in (1, 10):
        with tempfile.TemporaryDirectory() as directory:
            task = _task(Path(directory), options, options.documents, times)
            found = _measure("regraft", task, Path(directory), options)
        print(f"{task['documents']:10,} {task['bytes'] / 2**20:9.1f} {found['peak_bytes'] / 2**20:9.0f}", flush=True)


def _task(work: Path, options: argparse.Namespace, num_documents: int, times: int = 1) -> dict:
    model = options.model or source_model(work / "source")
    stage = SourceDataset(SourceDatasetParams(dataset=PASSAGES, text_field="passage", limit=num_documents))
    context = Context(inputs={}, out=work / "passages", scratch=work / "scratch")
    stage.run(context)
    shards = Dataset(context.output("dataset")).shards
    passages = [text for shard in shards for text in pq.read_table(shard)["text"].to_pylist()]
    texts = [f"{copy}. {text}" if copy else text for copy in range(times) for text in passages]
    folder, jsonl = work / "text", work / "text.jsonl"
    folder.mkdir()
    pq.write_table(pa.table({"text": texts}, TEXT), folder / "shard-00000.parquet", row_group_size=1000)
    num_bytes = sum(len(text.encode()) for text in texts)
    DatasetCard("text", num_rows=len(texts), num_bytes=num_bytes).write(folder)
    jsonl.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    counts = {"documents": len(texts), "characters": sum(map(len, texts)), "bytes": num_bytes}
    eos = json.loads((model / "tokenizer_config.json").read_text())["eos_token"]
    return {
        "model": str(model),
        "text": str(folder),
        "jsonl": str(jsonl),
        "length": options.length,
        "eos": eos,
        **counts,
    }


def _measure(name: str, task: dict, work: Path, options: argparse.Namespace) -> dict[str, float]:
    with tempfile.TemporaryDirectory(dir=work) as scratch:
        given = json.dumps({**task, "scratch": scratch})
        if name == "datatrove":
            command = [str(python(options.cache)), str(Path(__file__).parent / "peer_datatrove.py"), given]
        else:
            command = [sys.executable, "-m", "benchmarks.data.worker", name, given]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{name} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def _machine() -> None:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    print(f"{platform.machine()}, {cores} cores, Python {platform.python_version()}")
    versions = [f"{name} {metadata.version(name)}" for name in ("tokenizers", "datasets", "pyarrow")]
    print(", ".join([*versions, f"datatrove {DATATROVE}"]))
