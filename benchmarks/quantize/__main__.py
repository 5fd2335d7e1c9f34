"""GPTQ beside llmcompressor's, on the same weights and the same Hessians of a real model.

    python -m benchmarks.quantize gptq [--model DIRECTORY] [--layers 0 14 29] [--bits 4 3] [--group-size 64]

`gptq` takes linears of a few decoder layers, and the second moments of their inputs on real text, to both; each
rounds on the same grid, strongest input first, with the same damping. The figure is what GPTQ keeps small: the squared
error of the outputs, as a share of the squared outputs, in float64. llmcompressor is installed once, into an
environment of its own below `--cache`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from benchmarks.environments import default_cache


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quantize", description=__doc__.splitlines()[0])
    gptq = parser.add_subparsers(dest="what", required=True).add_parser("gptq")
    gptq.add_argument("--model", type=Path, help="a model directory; SmolLM2-135M-Instruct without it")
    gptq.add_argument("--layers", type=int, nargs="+", default=[0, 14, 29])
    gptq.add_argument("--bits", type=int, nargs="+", default=[4, 3])
    gptq.add_argument("--group-size", type=int, default=64)
    gptq.add_argument("--windows", type=int, default=16, help="of 512 tokens of BoolQ passages, for the Hessians")
    gptq.add_argument("--cache", type=Path, default=default_cache(), help="where llmcompressor is installed")
    options = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads\n")
    from benchmarks.quantize.oracle import compare

    compare(options)


if __name__ == "__main__":
    main()
