"""Making a mixture of experts beside mergekit-moe, and its layer beside a naive loop and Mixtral's of transformers.

    python -m benchmarks.upcycle convert [--experts 3] [--width 576] [--layers 30] [--repetitions 3]
    python -m benchmarks.upcycle forward [--tokens 1 64 512] [--experts 4 8] [--backward] [--repetitions 7]

`convert` makes a seed and branches of it, random Llamas of SmolLM2-135M's shape if nothing else is said, and lets
`upcycle.btx`'s builder and `mergekit-moe` put their feed-forward parts side by side, from files to files: each turn a
fresh process, in opposite orders. Seconds are those of the work, without imports; memory is the peak of the process,
and what of it came after the imports. All tensors of the two but the random routers must be equal, bit for bit.
mergekit is installed once, alone, below `--cache`; what it needs is taken from this environment.

`forward` gives one layer's weights to all: ours (one call an expert on all of its tokens), a loop over tokens, and
`MixtralSparseMoeBlock` with each of its implementations of experts. Outputs must be equal. The contenders take turns in
one process, after one turn each that does not count.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.environments import default_cache
from benchmarks.publish import add_json_option, publish


def main() -> None:
    options = _options()
    if options.what == "convert":
        from benchmarks.upcycle.convert import measure
    else:
        from benchmarks.upcycle.forward import measure
    publish(measure(options), options)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.upcycle", description=__doc__.splitlines()[0])
    kinds = parser.add_subparsers(dest="what", required=True)
    convert, forward = kinds.add_parser("convert"), kinds.add_parser("forward")
    convert.add_argument("--experts", type=int, default=3)
    convert.add_argument("--layers", type=int, default=30)
    convert.add_argument("--vocabulary", type=int, default=49_152)
    convert.add_argument("--repetitions", type=int, default=3)
    convert.add_argument("--cache", type=Path, default=default_cache(), help="where mergekit is installed")
    forward.add_argument("--tokens", type=int, nargs="+", default=[1, 64, 512])
    forward.add_argument("--experts", type=int, nargs="+", default=[4, 8])
    forward.add_argument("--backward", action="store_true", help="the gradients too")
    forward.add_argument("--repetitions", type=int, default=7)
    for each in (convert, forward):
        each.add_argument("--width", type=int, default=576)
        add_json_option(each)
    return parser.parse_args()


if __name__ == "__main__":
    main()
