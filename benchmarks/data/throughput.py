"""Tokenise and pack: seconds, CPU seconds and peak memory of each contender."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.data.peers import DATATROVE, python
from benchmarks.findings import CPU_SECONDS, PEAK_MIB, Findings, Measure
from benchmarks.sources import PASSAGES, source_model
from benchmarks.turns import in_turns
from stages.artifacts import Dataset, DatasetCard
from stages.data.shards import TEXT
from stages.source.dataset import SourceDataset, SourceDatasetParams
from stages.stage import Context

CONTENDERS = ("regraft", "datasets.map", "datatrove")
SPEED, TOKENS = Measure("MB/s", "more"), Measure("tokens")


def compare(options: argparse.Namespace) -> Findings:
    """A row for each contender."""
    with tempfile.TemporaryDirectory() as directory:
        work = Path(directory)
        task = _task(work, options, options.documents)
        found: dict[str, list[dict[str, float]]] = {name: [] for name in CONTENDERS}
        for number, name in in_turns(CONTENDERS, options.repetitions):
            found[name].append(_measure(name, task, work, options))
            print(f"{number}/{options.repetitions} {name}: {found[name][-1]}", file=sys.stderr, flush=True)
    findings = Findings(
        f"{task['documents']:,} documents, {task['characters']:,} characters; turns: {options.repetitions}",
        {**_versions(), "datatrove": DATATROVE},
    )
    for name, rows in found.items():
        figures = {
            SPEED: [task["bytes"] / row["seconds"] / 1e6 for row in rows],
            CPU_SECONDS: [row["cpu_seconds"] for row in rows],
            PEAK_MIB: [row["peak_bytes"] / 2**20 for row in rows],
            TOKENS: [row["tokens"] for row in rows],
        }
        findings.add("", name, figures)
    for name in CONTENDERS[1:]:
        findings.compare("regraft", name, SPEED, CPU_SECONDS, PEAK_MIB)
    return findings


def memory(options: argparse.Namespace) -> Findings:
    """The peak of `data.prepare` on a corpus and on ten of it."""
    findings = Findings(f"data.prepare alone, windows of {options.length} tokens", _versions())
    for times, name in ((1, "once"), (10, "ten times")):
        with tempfile.TemporaryDirectory() as directory:
            task = _task(Path(directory), options, options.documents, times)
            found = _measure("regraft", task, Path(directory), options)
        figures = {Measure("text MiB"): task["bytes"] / 2**20, PEAK_MIB: found["peak_bytes"] / 2**20}
        findings.add("", f"the text {name}, {task['documents']:,} documents", figures)
    findings.compare(findings.rows[1].who, findings.rows[0].who, PEAK_MIB)
    return findings


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


def _versions() -> dict[str, str]:
    names = ("tokenizers", "datasets", "pyarrow")
    return {name: metadata.version(name) for name in names}
