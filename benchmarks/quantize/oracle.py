"""Our GPTQ and llmcompressor's on the same weights and Hessians."""

from __future__ import annotations

import argparse
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from benchmarks.environments import ensure
from benchmarks.findings import CPU_SECONDS, Findings, Measure
from benchmarks.quantize.moments import linears_with_moments
from grafts.quantizers.gptq import gptq
from grafts.rtn import dequantise, quantise

PEER: Final = ("llmcompressor", "0.14.0.1")
DAMPING: Final = 0.01
ERROR: Final = Measure("output error", "less")
NEAREST, OURS, THEIRS = "round to nearest", "regraft", "llmcompressor"


def compare(options: argparse.Namespace) -> Findings:
    """A row for each number of bits and contender; instead of turns, figures are one for each linear."""
    torch.set_num_threads(1)
    python = ensure(options.cache, *PEER) / "python"
    found = linears_with_moments(options.model, options.layers, options.windows)
    findings = Findings(
        f"{len(found)} linears of layers {', '.join(map(str, options.layers))}, groups of {options.group_size}, "
        f"asymmetric, damping {DAMPING}; spread over the linears",
        dict([PEER]),
    )
    for bits in options.bits:
        theirs = _theirs(python, found, bits, options.group_size)
        for name, (errors, seconds) in _by_contender(found, theirs, bits, options.group_size).items():
            findings.add(f"{bits} bits", name, {ERROR: errors, CPU_SECONDS: seconds} if seconds else {ERROR: errors})
    findings.compare(OURS, THEIRS, ERROR, CPU_SECONDS)
    findings.compare(OURS, NEAREST, ERROR)
    return findings


def _by_contender(
    found: Mapping[str, tuple[Tensor, Tensor]], theirs: Mapping[str, Tensor], bits: int, group_size: int
) -> dict[str, tuple[list[float], list[float]]]:
    """Output errors and CPU seconds, one for each linear."""
    settings = {"bits": bits, "group_size": group_size, "symmetric": False}
    made: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in (NEAREST, OURS, THEIRS)}
    for name, (weight, hessian) in found.items():
        began = time.process_time()
        ours = dequantise(gptq(weight, hessian, **settings, damping=DAMPING, order="activation"))
        made[OURS][1].append(time.process_time() - began)
        made[THEIRS][1].append(theirs[f"{name}.cpu_seconds"].item())
        rounded = {NEAREST: dequantise(quantise(weight, **settings)), OURS: ours, THEIRS: theirs[name]}
        for who, other in rounded.items():
            made[who][0].append(output_error(weight, other, hessian))
    return made


def output_error(weight_OI: Tensor, rounded_OI: Tensor, hessian_II: Tensor) -> float:
    """tr(D H D^T) as a share of tr(W H W^T), D the change of the weight."""
    whole, change = weight_OI.double(), weight_OI.double() - rounded_OI.double()
    return ((change @ hessian_II * change).sum() / (whole @ hessian_II * whole).sum()).item()


def _theirs(python: Path, found: Mapping[str, tuple[Tensor, Tensor]], bits: int, group_size: int) -> dict[str, Tensor]:
    with tempfile.TemporaryDirectory() as place:
        source, target = Path(place) / "in.safetensors", Path(place) / "out.safetensors"
        tensors = {f"{name}.weight": weight for name, (weight, _) in found.items()}
        tensors |= {f"{name}.hessian": hessian for name, (_, hessian) in found.items()}
        told = {"bits": str(bits), "group_size": str(group_size), "damping": str(DAMPING)}
        save_file(tensors, source, told)
        script = Path(__file__).with_name("peer_gptq.py")
        subprocess.run([str(python), str(script), str(source), str(target)], check=True)
        return load_file(target)
