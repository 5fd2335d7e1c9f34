"""Rollouts in one batch against `model.generate`, where the time of a reinforcement learning step goes, and search.

    python -m benchmarks.agent rollouts [--rollouts 8] [--turns 2] [--turn-tokens 32] [--prompt 256] [--told 128]
    python -m benchmarks.agent step     [--credit igpo] [--staleness 0] [--questions 1] [--rollouts 8]
    python -m benchmarks.agent retrieval [--documents 12271] [--queries 1000]
    python -m benchmarks.agent credit --store STORE [--figure FILE.svg]

The model is SmolLM2-135M-Instruct unless `--model DIRECTORY` names another. `rollouts` gives every contender the same
prompts and the same results of tools, and lets all write turns of equal length: the project's engine (one batch, its
cache going on over turns), `generate` on padded batches that are read anew each turn, and `generate` on one rollout
after another. Contenders take turns in one process, in opposite orders; each runs once to warm up. `step` runs the
stage `agent.rl` on cloze questions over passages of Wikipedia and prints the seconds of each phase. With
`--staleness 1` rollouts are written beside the updates, which takes two CPUs with a thread each. `retrieval` asks
questions of people about passages, and prints how often each ranking of `agent.index` finds the one that answers;
`--model` is then the encoder, MiniLM unless told otherwise. `credit` reads what benchmarks/agent/credit.yaml left in
a store.
On a machine that others use too, trust the ratios, and CPU seconds, with `OMP_NUM_THREADS=1`.
"""

from __future__ import annotations

import argparse
import os
import platform
from importlib import import_module, metadata
from pathlib import Path

import torch


def main() -> None:
    options = _options()
    if options.what != "credit":
        names = ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "transformers", "deepspeed"))
        threads = f"{torch.get_num_threads()} threads of {os.cpu_count()} CPUs"
        print(f"{platform.platform()}, {threads}, Python {platform.python_version()}, {names}\n", flush=True)
    import_module(f"benchmarks.agent.{options.what}").measure(options)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.agent", description=__doc__.splitlines()[0])
    kinds = parser.add_subparsers(dest="what", required=True)
    rollouts, step, retrieval = (kinds.add_parser(name) for name in ("rollouts", "step", "retrieval"))
    credit = kinds.add_parser("credit")
    credit.add_argument("--store", default=".regraft")
    credit.add_argument("--figure", type=Path)
    for each in (rollouts, step, retrieval):
        each.add_argument("--model", type=Path)
    retrieval.add_argument("--documents", type=int, default=12_271, help="passages, from the front")
    retrieval.add_argument("--queries", type=int, default=1000)
    for each in (rollouts, step):
        each.add_argument("--rollouts", type=int, default=8, help="side by side; of each question for `step`")
        each.add_argument("--turns", type=int, default=2)
        each.add_argument("--turn-tokens", type=int, default=32)
    rollouts.add_argument("--prompt", type=int, default=256, help="tokens of the prompt")
    rollouts.add_argument("--told", type=int, default=128, help="tokens of a tool's result")
    rollouts.add_argument("--repetitions", type=int, default=3)
    rollouts.add_argument("--device", default="cpu")
    rollouts.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    step.add_argument("--credit", choices=("igpo", "gain", "outcome", "grpo"), default="igpo")
    step.add_argument("--questions", type=int, default=1)
    step.add_argument("--steps", type=int, default=3, help="at least; the first one warms up")
    step.add_argument("--staleness", type=int, choices=(0, 1), default=0, help="1: rollouts beside updates")
    step.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    return parser.parse_args()


if __name__ == "__main__":
    main()
