"""Branches of one seed become a mixture, by our builder and by mergekit-moe: time, memory, and equal tensors."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from benchmarks.environments import ensure_beside
from benchmarks.findings import CPU_SECONDS, PEAK_MIB, SECONDS, Findings, Measure
from benchmarks.turns import in_turns
from grafts.loader import load_model, save_model

MERGEKIT: Final = "0.1.5"
BESIDE: Final = ("immutables==0.21",)
"""What mergekit imports and this project does not."""
AFTER_IMPORTS: Final = Measure("MiB after imports", "less")
OURS, THEIRS = "regraft", "mergekit-moe"
FIGURES: Final = {
    SECONDS: ("seconds", 1),
    CPU_SECONDS: ("cpu_seconds", 1),
    PEAK_MIB: ("peak_bytes", 2**-20),
    AFTER_IMPORTS: ("grown_bytes", 2**-20),
}


def measure(options: argparse.Namespace) -> Findings:
    """Fresh processes in turns, and what they wrote compared at the end."""
    place = ensure_beside(options.cache, "mergekit", MERGEKIT, BESIDE)
    turns: dict[str, list[dict[str, float]]] = {OURS: [], THEIRS: []}
    with tempfile.TemporaryDirectory() as directory:
        work = Path(directory)
        task = _task(work, options)
        for number, name in in_turns(turns, options.repetitions):
            turns[name].append(_run(name, task, place))
            print(f"{number}/{options.repetitions} {name}: {turns[name][-1]}", file=sys.stderr, flush=True)
        size = sum(file.stat().st_size for file in (work / OURS).glob("*.safetensors"))
        unlike = different(work / OURS, work / THEIRS)
    what = f"into {options.experts} experts, {size / 1e6:,.0f} MB"
    findings = Findings(_setting(options), {"mergekit": MERGEKIT})
    for name, found in turns.items():
        figures = {measure: [turn[key] * scale for turn in found] for measure, (key, scale) in FIGURES.items()}
        findings.add(what, name, figures)
    findings.compare(OURS, THEIRS, *FIGURES)
    if unlike:
        findings.broken.append(f"both write the same parameters; {len(unlike)} do not, such as {', '.join(unlike[:2])}")
    else:
        findings.notes.append("All parameters but the random routers are equal, bit for bit.")
    return findings


def _setting(options: argparse.Namespace) -> str:
    shape = f"width {options.width}, {options.layers} layers, vocabulary {options.vocabulary:,}"
    return f"A random float32 Llama ({shape}) and {options.experts} branches of it; turns: {options.repetitions}"


def _task(work: Path, options: argparse.Namespace) -> dict[str, object]:
    from tests.tiny import tiny_model

    shape = {"hidden": options.width, "num_layers": options.layers, "num_heads": options.width // 64}
    seed = tiny_model(work / "seed", vocab_size=options.vocabulary, **shape)
    experts = [_branch(seed, work / f"branch-{number}", number) for number in range(options.experts)]
    return {"seed": str(seed), "experts": [str(path) for path in experts], "work": str(work)}


def _branch(seed: Path, directory: Path, number: int) -> Path:
    """The seed with every weight moved a little."""
    model, draw = load_model(seed, dtype=torch.float32), torch.Generator().manual_seed(number)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=draw) * 0.02)
    save_model(model, directory, tokenizer_from=seed)
    return directory


def _run(name: str, task: dict[str, object], place: Path) -> dict[str, float]:
    out = Path(str(task["work"])) / name
    shutil.rmtree(out, ignore_errors=True)
    given, environment = json.dumps({**task, "out": str(out)}), dict(os.environ)
    if name == OURS:
        command = [sys.executable, "-m", "benchmarks.upcycle.worker", given]
    else:
        command = [sys.executable, str(Path(__file__).with_name("peer_mergekit.py")), given]
        environment["PYTHONPATH"] = os.pathsep.join([str(place), *sys.path])
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise SystemExit(f"{name} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def different(ours: Path, theirs: Path) -> list[str]:
    """Names of parameters that are not equal in both, or not there; of random routers only the shape counts."""
    mine, others = (AutoModelForCausalLM.from_pretrained(path, dtype="auto").state_dict() for path in (ours, theirs))
    return sorted(
        name for name in mine.keys() | others.keys() if not _equal(mine.get(name), others.get(name), _is_router(name))
    )


def _is_router(name: str) -> bool:
    return name.endswith("mlp.gate.weight")


def _equal(one: Tensor | None, other: Tensor | None, only_shape: bool) -> bool:
    if one is None or other is None:
        return False
    return one.shape == other.shape if only_shape else torch.equal(one, other)
