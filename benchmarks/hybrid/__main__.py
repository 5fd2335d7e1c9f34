"""The chunked delta rule against transformers', and hybrids against full attention as the context grows.

    python -m benchmarks.hybrid rule    [--shapes 512x9x64 2048x9x64] [--backward] [--repetitions 5]
    python -m benchmarks.hybrid context [--model DIRECTORY] [--lengths 512 2048 8192] [--kept 4 8] [--device cuda]

`rule` gives both the same tensors (tokens × heads × head width) and prints the largest difference of their outputs.
`context` takes a model (without `--model`, a random Llama of 22 million parameters) and hybrids of it that keep one
head in 4, and one in 8, spread evenly, or with `--by group` whole key-value groups. It measures reading a context,
writing tokens after it, and the bytes of the cache. Contenders take turns in one process, in opposite orders; each runs
once to warm up. On a machine that others use too, trust the ratios, and CPU seconds, with `OMP_NUM_THREADS=1`.
"""

from __future__ import annotations

import argparse
import os
import platform
from importlib import metadata
from pathlib import Path

import torch


def main() -> None:
    options = _options()
    names = ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "transformers"))
    threads = f"{torch.get_num_threads()} threads of {os.cpu_count()} CPUs"
    print(f"{platform.platform()}, {threads}, Python {platform.python_version()}, {names}\n")
    if options.what == "rule":
        from benchmarks.hybrid.rule import measure
    else:
        from benchmarks.hybrid.context import measure
    measure(options)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.hybrid", description=__doc__.splitlines()[0])
    kinds = parser.add_subparsers(dest="what", required=True)
    rule, context = kinds.add_parser("rule"), kinds.add_parser("context")
    rule.add_argument("--shapes", nargs="+", default=["512x9x64", "2048x9x64", "2048x16x128"])
    rule.add_argument("--backward", action="store_true", help="the gradients too")
    context.add_argument("--model", type=Path)
    context.add_argument("--lengths", nargs="+", type=int, default=[512, 1024, 2048, 4096])
    context.add_argument("--kept", nargs="+", type=int, default=[4, 8], help="keep one head in this many")
    context.add_argument("--by", choices=("head", "group"), default="head", help="spread heads, or whole groups")
    context.add_argument("--tokens", type=int, default=16, help="tokens written after the context")
    context.add_argument("--device", default="cpu")
    context.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    for each in (rule, context):
        each.add_argument("--repetitions", type=int, default=5)
    return parser.parse_args()


if __name__ == "__main__":
    main()
