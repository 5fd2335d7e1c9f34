"""Preparing data beside the tools that people use: throughput, near-duplicates, memory.

    python -m benchmarks.data throughput  [--model DIRECTORY] [--documents 6000] [--repetitions 3]
    python -m benchmarks.data duplicates  [--documents 1500]
    python -m benchmarks.data memory      [--model DIRECTORY] [--documents 2000]

`throughput` tokenises and packs the same passages of Wikipedia, each contender in a fresh process, in turns: ours
(`data.prepare` as it is: also normalises, drops repetitions, splits and shuffles by document), `datasets.map` (tokenise
in batches, then cut into windows, then parquet), and datatrove's `DocumentTokenizer` (tokenises and shuffles; cuts no
windows). Seconds are those of the work, without imports. `duplicates` plants near-duplicates among documents of random
words and looks for them with our MinHash and with datasketch's, at the same number of hashes and the same threshold.
`memory` is the peak of `data.prepare` on a corpus and on ten of it. datatrove and datasketch are installed once,
into an environment of their own below `--cache`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.environments import default_cache
from benchmarks.publish import add_json_option, publish


def main() -> None:
    options = _options()
    if options.what == "throughput":
        from benchmarks.data.throughput import compare as measure
    elif options.what == "duplicates":
        from benchmarks.data.duplicates import compare as measure
    else:
        from benchmarks.data.throughput import memory as measure
    publish(measure(options), options)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.data", description=__doc__.splitlines()[0])
    kinds = parser.add_subparsers(dest="what", required=True)
    for name, documents in (("throughput", 6000), ("duplicates", 1500), ("memory", 2000)):
        kind = kinds.add_parser(name)
        kind.add_argument("--documents", type=int, default=documents)
        kind.add_argument("--cache", type=Path, default=default_cache(), help="where the peers are installed")
        add_json_option(kind)
        if name != "duplicates":
            kind.add_argument("--model", type=Path, help="a model directory; SmolLM2-135M-Instruct without it")
            kind.add_argument("--length", type=int, default=512, help="tokens of a window")
        if name == "throughput":
            kind.add_argument("--repetitions", type=int, default=3)
    return parser.parse_args()


if __name__ == "__main__":
    main()
