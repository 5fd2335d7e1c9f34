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
from benchmarks.quantize.moments import linears_with_moments
from grafts.quantizers.gptq import gptq
from grafts.rtn import dequantise, quantise

PEER: Final = ("llmcompressor", "0.14.0.1")
DAMPING: Final = 0.01
COLUMNS: Final = ("bits", "linear", "nearest", "ours", "theirs", "ours ÷ theirs", "CPU ours ÷ theirs")


def compare(options: argparse.Namespace) -> None:
    """Print a row for each linear and number of bits."""
    torch.set_num_threads(1)
    python = ensure(options.cache, *PEER) / "python"
    found = linears_with_moments(options.model, options.layers, options.windows)
    print(f"{' '.join(PEER)}, groups of {options.group_size}, asymmetric, damping {DAMPING}\n")
    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}")
    for bits in options.bits:
        theirs = _theirs(python, found, bits, options.group_size)
        for name, (weight, hessian) in found.items():
            began = time.process_time()
            settings = {"bits": bits, "group_size": options.group_size, "symmetric": False}
            ours = dequantise(gptq(weight, hessian, **settings, damping=DAMPING, order="activation"))
            seconds = time.process_time() - began
            nearest = dequantise(quantise(weight, **settings))
            errors = [output_error(weight, other, hessian) for other in (nearest, ours, theirs[name])]
            ratio, pace = errors[1] / errors[2], seconds / theirs[f"{name}.cpu_seconds"].item()
            print(f"| {bits} | {name} | {' | '.join(f'{error:.3e}' for error in errors)} | {ratio:.4f} | {pace:.2f} |")


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
