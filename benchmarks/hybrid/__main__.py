"""The chunked delta rule against transformers', hybrids against full attention, and what the kept heads recall.

    python -m benchmarks.hybrid rule    [--shapes 512x9x64 2048x9x64] [--backward] [--repetitions 5]
    python -m benchmarks.hybrid context [--model DIRECTORY] [--lengths 512 2048 8192] [--kept 4 8] [--device cuda]
    python -m benchmarks.hybrid recall  [--window 64] [--sinks 4] [--lengths 256 512 1024] [--probes 5]

`rule` gives both the same tensors (tokens × heads × head width) and prints the largest difference of their outputs.
`context` takes a model (without `--model`, a random Llama of 23.1 million parameters) and hybrids of it that keep one
head in 4, and one in 8, spread evenly, or with `--by group` whole key-value groups. It measures reading a context,
writing tokens after it, and the bytes of the cache. Contenders take turns in one process, in opposite orders; each runs
once to warm up. On a machine that others use too, trust the ratios, and CPU seconds, with `OMP_NUM_THREADS=1`.

`recall` asks whether the scores of heads matter; nothing is trained: the heads that a strategy keeps see everything,
exactly as in the teacher, the others a window and the first tokens, without which softmax attention breaks down
whatever it has to read (arXiv 2309.17453; `--sinks 0` shows that). For each strategy and share of heads, a figure a
seed: KL to the teacher on held-out windows, the share of needles found, and the nats of their answers.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.publish import add_json_option, publish


def main() -> None:
    options = _options()
    if options.what == "rule":
        from benchmarks.hybrid.rule import measure
    elif options.what == "recall":
        from benchmarks.hybrid.recall import measure
    else:
        from benchmarks.hybrid.context import measure
    publish(measure(options), options)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.hybrid", description=__doc__.splitlines()[0])
    kinds = parser.add_subparsers(dest="what", required=True)
    rule, context, recall = (kinds.add_parser(name) for name in ("rule", "context", "recall"))
    rule.add_argument("--shapes", nargs="+", default=["512x9x64", "2048x9x64", "2048x16x128"])
    rule.add_argument("--backward", action="store_true", help="the gradients too")
    context.add_argument("--model", type=Path)
    context.add_argument("--lengths", nargs="+", type=int, default=[512, 1024, 2048, 4096])
    context.add_argument("--kept", nargs="+", type=int, default=[4, 8], help="keep one head in this many")
    context.add_argument("--by", choices=("head", "group"), default="head", help="spread heads, or whole groups")
    context.add_argument("--tokens", type=int, default=16, help="tokens written after the context")
    context.add_argument("--device", default="cpu")
    context.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    recall.add_argument("--window", type=int, default=64, help="tokens that heads see that are not kept")
    recall.add_argument("--sinks", type=int, default=4, help="first tokens that they see as well")
    recall.add_argument("--lengths", nargs="+", type=int, default=[256, 512, 1024], help="tokens of the probes")
    recall.add_argument("--probes", type=int, default=5, help="for each length and depth")
    recall.add_argument("--windows", type=int, default=16, help="held-out windows of 512 tokens")
    recall.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="of recall.yaml")
    recall.add_argument("--store", default="build/benchmarks", help="where scores and selections are kept")
    for each in (rule, context):
        each.add_argument("--repetitions", type=int, default=5)
    for each in (rule, context, recall):
        add_json_option(each)
    return parser.parse_args()


if __name__ == "__main__":
    main()
