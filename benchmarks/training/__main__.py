"""Our loop against the Hugging Face `Trainer`, and against TRL: same model, batches, optimiser and precision, in turns.

    python -m benchmarks.training [--model DIRECTORY] [--steps 6] [--repetitions 3] [--precision fp32]
    python -m benchmarks.training --task kd

`lm` is next-token training beside the `Trainer`. `kd` is distillation by forward KL into two thirds of the same model's
layers, beside TRL's GKD trainer (which is installed once below `--cache`), and from a cache of the teacher.

Every measurement is a fresh process that trains a few steps and prints one line of JSON. The first step warms up and is
not counted. Without `--model` a random Llama of 21 million parameters is made; with it, any Hugging Face directory.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path

from benchmarks.environments import default_cache, ensure_beside
from benchmarks.findings import Findings, Measure
from benchmarks.publish import add_json_option, publish

TRL = "1.16.0"
CONTENDERS = {"lm": ("regraft", "transformers"), "kd": ("regraft", "regraft cache", "trl")}
"""The last of each is what the others are compared with."""
MEASURES = {
    "tokens_per_second": Measure("tokens/s", "more"),
    "cpu_ms_per_token": Measure("CPU ms/token", "less"),
    "peak_gib": Measure("peak GiB", "less"),
    "last_loss": Measure("last loss"),
}
"""What a worker tells, and what is made of it."""


def main() -> None:
    options = _options()
    with tempfile.TemporaryDirectory() as directory:
        work = Path(directory)
        model = options.model or _make_model(work / "model")
        _make_data(work / "data", model, options)
        options.student = _make_student(work / "student", model) if options.task == "kd" else model
        contenders = CONTENDERS[options.task]
        found: dict[str, list[dict[str, float]]] = {name: [] for name in contenders}
        for number in range(options.repetitions):
            order = contenders if number % 2 == 0 else contenders[::-1]
            for name in order:
                found[name].append(_measure(name, model, work, options))
                print(f"{number + 1}/{options.repetitions} {name}: {found[name][-1]}", file=sys.stderr, flush=True)
    publish(_findings(found, model, options), options)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training", description=__doc__.splitlines()[0])
    parser.add_argument("--task", choices=CONTENDERS, default="lm")
    parser.add_argument("--model", type=Path)
    parser.add_argument("--steps", type=int, default=6, help="measured steps, after one that warms up")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--batch", type=int, default=8, help="sequences in a step")
    parser.add_argument("--micro-batch", type=int, default=4)
    parser.add_argument("--length", type=int, default=256, help="tokens in a sequence")
    parser.add_argument("--zero-stage", type=int, default=0, help="of our loop")
    parser.add_argument("--cache", type=Path, default=default_cache(), help="where TRL is installed")
    add_json_option(parser)
    return parser.parse_args()


def _measure(name: str, model: Path, work: Path, options: argparse.Namespace) -> dict[str, float]:
    task = {"contender": name, "model": str(model), "student": str(options.student), "data": str(work / "data")}
    keys = ("task", "steps", "precision", "batch", "micro_batch", "length", "zero_stage")
    task |= {key: getattr(options, key) for key in keys}
    with tempfile.TemporaryDirectory(dir=work) as scratch:
        command = [sys.executable, "-m", "benchmarks.training.worker", json.dumps({**task, "scratch": scratch})]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=_environment(name, options))
    if done.returncode:
        raise SystemExit(f"{name} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def _environment(name: str, options: argparse.Namespace) -> dict[str, str]:
    if name != "trl":
        return dict(os.environ)
    place = ensure_beside(options.cache, "trl", TRL)
    return {**os.environ, "PYTHONPATH": os.pathsep.join([*sys.path, str(place)])}


def _make_student(directory: Path, model: Path) -> Path:
    import torch

    from grafts.depth import keep_layers, num_kept_layers, uniform_layers
    from grafts.loader import load_model, save_model

    teacher = load_model(model, dtype=torch.float32)
    depth = teacher.config.num_hidden_layers
    kept = uniform_layers(depth, num_kept_layers(depth, 2 / 3))
    save_model(keep_layers(teacher, kept), directory, tokenizer_from=model)
    return directory


def _make_model(directory: Path) -> Path:
    from tests.tiny import tiny_model

    return tiny_model(directory, vocab_size=8192, num_layers=8, hidden=448, num_heads=8, max_positions=2048)


def _make_data(directory: Path, model: Path, options: argparse.Namespace) -> None:
    from tests.tiny import tokens_dataset

    windows = options.batch * (options.steps + 1)
    tokens_dataset(directory, model, num_windows=windows, sequence_length=options.length)


def _findings(found: dict[str, list[dict[str, float]]], model: Path, options: argparse.Namespace) -> Findings:
    findings = Findings(
        f"{options.task}, {options.precision}, {options.steps} steps of {options.batch} x {options.length} tokens, "
        f"micro-batch {options.micro_batch}, {'random Llama' if options.model is None else model.name}, "
        f"ZeRO {options.zero_stage}; turns: {options.repetitions}",
        {"trl": TRL} if "trl" in found else {"accelerate": metadata.version("accelerate")},
    )
    for name, rows in found.items():
        findings.add("", name, {measure: [row[key] for row in rows] for key, measure in MEASURES.items()})
    *ours, theirs = found
    for name in ours:
        findings.compare(name, theirs, *MEASURES.values())
    if "regraft cache" in found:
        num_bytes = found["regraft cache"][-1]["cache_bytes_per_token"]
        findings.notes.append(f"The teacher's cache has {num_bytes:.0f} bytes a token.")
    return findings


if __name__ == "__main__":
    main()
