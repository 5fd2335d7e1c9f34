"""Our loop against the Hugging Face `Trainer`: same model, batches, optimiser and precision, alternating in one run.

    python -m benchmarks.training [--model DIRECTORY] [--steps 6] [--repetitions 3] [--precision fp32]

Every measurement is a fresh process that trains a few steps and prints one line of JSON. The first step warms up and is
not counted. Without `--model` a random Llama of 21 million parameters is made; with it, any Hugging Face directory.
"""

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

CONTENDERS = ("regraft", "transformers")
COLUMNS = {
    "tokens_per_second": "tokens/s",
    "cpu_ms_per_token": "CPU ms/token",
    "peak_gib": "GiB peak RSS",
    "last_loss": "last loss",
}
"""What is measured, and its heading; the ratio is that of medians to the `Trainer`'s."""


def main() -> None:
    options = _options()
    with tempfile.TemporaryDirectory() as directory:
        work = Path(directory)
        model = options.model or _make_model(work / "model")
        _make_data(work / "data", model, options)
        found: dict[str, list[dict[str, float]]] = {name: [] for name in CONTENDERS}
        for number in range(options.repetitions):
            order = CONTENDERS if number % 2 == 0 else CONTENDERS[::-1]
            for name in order:
                found[name].append(_measure(name, model, work, options))
                print(f"{number + 1}/{options.repetitions} {name}: {found[name][-1]}", file=sys.stderr, flush=True)
    _print(found, model, options)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training", description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path)
    parser.add_argument("--steps", type=int, default=6, help="measured steps, after one that warms up")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--batch", type=int, default=8, help="sequences in a step")
    parser.add_argument("--micro-batch", type=int, default=4)
    parser.add_argument("--length", type=int, default=256, help="tokens in a sequence")
    parser.add_argument("--zero-stage", type=int, default=0, help="of our loop")
    return parser.parse_args()


def _measure(name: str, model: Path, work: Path, options: argparse.Namespace) -> dict[str, float]:
    task = {"contender": name, "model": str(model), "data": str(work / "data")}
    keys = ("steps", "precision", "batch", "micro_batch", "length", "zero_stage")
    task |= {key: getattr(options, key) for key in keys}
    with tempfile.TemporaryDirectory(dir=work) as scratch:
        command = [sys.executable, "-m", "benchmarks.training.worker", json.dumps({**task, "scratch": scratch})]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{name} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def _make_model(directory: Path) -> Path:
    from tests.tiny import tiny_model

    return tiny_model(directory, vocab_size=8192, num_layers=8, hidden=448, num_heads=8, max_positions=2048)


def _make_data(directory: Path, model: Path, options: argparse.Namespace) -> None:
    from tests.tiny import tokens_dataset

    windows = options.batch * (options.steps + 1)
    tokens_dataset(directory, model, num_windows=windows, sequence_length=options.length)


def _print(found: dict[str, list[dict[str, float]]], model: Path, options: argparse.Namespace) -> None:
    print(f"{platform.platform()}, {platform.machine()}, {os.cpu_count()} CPUs, Python {platform.python_version()}")
    print(
        ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "transformers", "deepspeed", "accelerate"))
    )
    print(
        f"{options.precision}, {options.steps} steps of {options.batch} x {options.length} tokens, micro-batch "
        f"{options.micro_batch}, {'random Llama' if options.model is None else model.name}, "
        f"{options.repetitions} repetitions, ZeRO {options.zero_stage}\n"
    )
    for key, unit in COLUMNS.items():
        print(f"{unit:14} {'min':>10} {'median':>10} {'max':>10} {'ratio':>8}")
        base = statistics.median(row[key] for row in found["transformers"])
        for name in CONTENDERS:
            values = [row[key] for row in found[name]]
            middle = statistics.median(values)
            print(f"{name:14} {min(values):10.4g} {middle:10.4g} {max(values):10.4g} {middle / base:8.3f}")
        print()


if __name__ == "__main__":
    main()
