"""GPTQ beside llmcompressor's, what corrections cost at inference, and what quantising a model takes.

    python -m benchmarks.quantize gptq    [--model DIRECTORY] [--layers 0 14 29] [--bits 4 3] [--group-size 64]
    python -m benchmarks.quantize latency [--width 1024] [--layers 4] [--rank 64] [--lengths 128 512]
    python -m benchmarks.quantize whole   [--width 896] [--layers 24] [--inner 4864] [--methods rtn gptq awq glowq]

`gptq` takes linears of a few decoder layers, and the second moments of their inputs on real text, to both; each
rounds on the same grid, strongest input first, with the same damping. The figure is what GPTQ keeps small: the squared
error of the outputs, as a share of the squared outputs, in float64. llmcompressor is installed once, into an
environment of its own below `--cache`.

`latency` takes a random quantised Llama without corrections, with one right factor for each linear (`separate`, 7 a
layer), with one for the linears that read the same input (`glowq`, 4 a layer), and with every second of those groups
(`glowq_s`). The dense weights are held, so that making them is no part of the figures: on a GPU a kernel multiplies the
codes themselves. The four take turns in one process, in opposite orders, after one turn each that does not count.

`whole` quantises a random model of 494 million parameters (the shape of Qwen2.5-0.5B) from files to files, each method
in a process of its own: seconds, and peak memory as a multiple of the model's float32 weights. Quality is not measured.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.environments import default_cache
from benchmarks.publish import add_json_option, publish


def main() -> None:
    options = _options()
    if options.what == "gptq":
        from benchmarks.quantize.oracle import compare as measure
    elif options.what == "whole":
        from benchmarks.quantize.whole import measure
    else:
        from benchmarks.quantize.latency import measure
    publish(measure(options), options)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quantize", description=__doc__.splitlines()[0])
    kinds = parser.add_subparsers(dest="what", required=True)
    gptq, latency, whole = (kinds.add_parser(name) for name in ("gptq", "latency", "whole"))
    gptq.add_argument("--model", type=Path, help="a model directory; SmolLM2-135M-Instruct without it")
    gptq.add_argument("--layers", type=int, nargs="+", default=[0, 14, 29])
    gptq.add_argument("--bits", type=int, nargs="+", default=[4, 3])
    gptq.add_argument("--group-size", type=int, default=64)
    gptq.add_argument("--windows", type=int, default=16, help="of 512 tokens of BoolQ passages, for the Hessians")
    gptq.add_argument("--cache", type=Path, default=default_cache(), help="where llmcompressor is installed")
    latency.add_argument("--width", type=int, default=1024)
    latency.add_argument("--layers", type=int, default=4)
    latency.add_argument("--rank", type=int, default=64)
    latency.add_argument("--lengths", type=int, nargs="+", default=[128, 512])
    latency.add_argument("--tokens", type=int, default=32, help="to write after each context")
    latency.add_argument("--repetitions", type=int, default=7)
    for name, default in (("width", 896), ("inner", 4864), ("layers", 24), ("vocabulary", 151_936)):
        whole.add_argument(f"--{name}", type=int, default=default)
    whole.add_argument("--rank", type=int, default=64, help="of GlowQ's corrections")
    whole.add_argument("--windows", type=int, default=16, help="of 512 tokens, to calibrate on")
    whole.add_argument("--methods", nargs="+", default=["rtn", "gptq", "awq", "glowq"], metavar="METHOD")
    for kind in (gptq, latency, whole):
        add_json_option(kind)
    return parser.parse_args()


if __name__ == "__main__":
    main()
