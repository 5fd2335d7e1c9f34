"""Seconds and memory that quantising a whole model takes, each method in a process of its own."""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.findings import CPU_SECONDS, PEAK_MIB, SECONDS, Findings, Measure
from stages.artifacts import Dataset, Model
from stages.memory import peak_memory_bytes
from stages.registry import find
from stages.source.generated import generated_tokenizer
from stages.stage import Context

OF_FLOAT32 = Measure("peak, times the float32 weights", "less")


def measure(options: argparse.Namespace) -> Findings:
    """A row for each method: files to files, without measuring the result."""
    with tempfile.TemporaryDirectory() as directory:
        work = Path(directory)
        num_parameters = _model(work / "model", options)
        findings = Findings(
            f"A random bfloat16 Llama of {num_parameters / 1e6:.0f} million parameters, 4 bits in groups of 64, "
            f"{options.windows} calibration windows of 512 tokens, threads: {torch.get_num_threads()}"
        )
        for name in options.methods:
            found = _run(name, work, options)
            print(f"{name}: {found}", file=sys.stderr, flush=True)
            figures = {
                SECONDS: found["seconds"],
                CPU_SECONDS: found["cpu_seconds"],
                PEAK_MIB: found["peak_bytes"] / 2**20,
                OF_FLOAT32: found["peak_bytes"] / (4 * num_parameters),
            }
            findings.add("", name, figures)
    return findings


def _model(directory: Path, options: argparse.Namespace) -> int:
    """Save the model; how many parameters it has."""
    config = LlamaConfig(
        vocab_size=options.vocabulary,
        hidden_size=options.width,
        intermediate_size=options.inner,
        num_hidden_layers=options.layers,
        num_attention_heads=options.width // 64,
        num_key_value_heads=max(1, options.width // 448),
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).to(torch.bfloat16)
    model.save_pretrained(directory)
    generated_tokenizer(directory)
    return model.num_parameters()


def _run(name: str, work: Path, options: argparse.Namespace) -> dict[str, float]:
    task = {"method": name, "work": str(work), "windows": options.windows, "rank": options.rank}
    command = [sys.executable, "-m", "benchmarks.quantize.whole", json.dumps(task)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    shutil.rmtree(work / name, ignore_errors=True)
    if done.returncode:
        raise SystemExit(f"{name} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def _quantise(task: dict) -> dict[str, float]:
    """One method in this process, imports left out."""
    from tests.tiny import tokens_dataset

    name, work = task["method"], Path(task["work"])
    inputs: dict[str, Model | Dataset] = {"model": Model(work / "model")}
    params = {"group_size": 64, "symmetric": False}
    if name != "rtn":
        tokens = work / "tokens"
        inputs["calibration"] = tokens_dataset(tokens, work / "model", num_windows=task["windows"], sequence_length=512)
        params |= {"calibration_windows": task["windows"]}
    if name == "glowq":
        params |= {"rank": task["rank"]}
    found = find(f"quantize.{name}")
    stage = found(found.Params(**params))
    start = time.perf_counter(), time.process_time()
    stage.run(Context(inputs, work / name, work / name / "scratch"))
    spent = {"seconds": time.perf_counter() - start[0], "cpu_seconds": time.process_time() - start[1]}
    return {**spent, "peak_bytes": peak_memory_bytes()}


if __name__ == "__main__":
    print(json.dumps(_quantise(json.loads(sys.argv[1]))))
