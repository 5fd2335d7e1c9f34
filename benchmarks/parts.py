"""All parts, in the order in which they run: the command of each, a quick version of it, and how long it takes."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final


@dataclass(frozen=True)
class Part:
    """One measurement, which is a command of its own."""

    name: str
    """FAMILY or FAMILY.KIND."""
    about: str
    minutes: float
    """What it takes on two CPU cores, about; the first estimate."""
    quick_minutes: float
    arguments: tuple[str, ...] = ()
    quick: tuple[str, ...] = ()
    """What makes it small: does it work here?"""
    has_peers: bool = False
    """Whether it installs a peer into an environment of its own."""
    hands_over: bool = True
    """Whether it writes its findings where `--json` says; what others print is shown as it is."""

    def command(self, *, quick: bool, cache: Path | None) -> list[str]:
        """What a person types for this part alone, without the interpreter's path."""
        words = ["python", "-m", f"benchmarks.{self.name.partition('.')[0]}", *self.arguments]
        words += self.quick if quick else ()
        return [*words, "--cache", str(cache)] if cache and self.has_peers else words

    def expected_seconds(self, *, quick: bool) -> float:
        """About."""
        return 60 * (self.quick_minutes if quick else self.minutes)


PARTS: Final = {
    part.name: part
    for part in (
        Part(
            "orchestrator",
            "the engine beside doit, Snakemake, DVC and make",
            60,
            4,
            quick=("--quick", "--only", "regraft,make,doit"),
            has_peers=True,
        ),
        Part(
            "evaluation",
            "perplexity beside lm-eval",
            6,
            1.5,
            quick=("--windows", "2", "--window", "128", "--repetitions", "1"),
        ),
        Part(
            "training",
            "the training loop beside the Hugging Face Trainer",
            6,
            2,
            quick=("--steps", "2", "--repetitions", "1", "--batch", "2", "--micro-batch", "2", "--length", "64"),
        ),
        Part(
            "training.kd",
            "distillation beside TRL's GKD",
            12,
            3,
            arguments=("--task", "kd"),
            quick=("--steps", "2", "--repetitions", "1", "--batch", "2", "--micro-batch", "2", "--length", "64"),
            has_peers=True,
        ),
        Part(
            "hybrid.rule",
            "the chunked delta rule beside that of transformers",
            2,
            0.5,
            arguments=("rule",),
            quick=("--shapes", "512x9x64", "--repetitions", "2"),
        ),
        Part(
            "hybrid.context",
            "hybrids beside full attention as the context grows",
            10,
            1,
            arguments=("context",),
            quick=("--lengths", "256", "512", "--kept", "4", "--repetitions", "2", "--tokens", "4"),
        ),
        Part(
            "upcycle.convert",
            "files to a mixture of experts, beside mergekit-moe",
            4,
            1.5,
            arguments=("convert",),
            quick=("--width", "256", "--layers", "8", "--vocabulary", "4096", "--repetitions", "1"),
            has_peers=True,
        ),
        Part(
            "upcycle.forward",
            "grouped experts beside a naive loop and Mixtral's block",
            3,
            0.5,
            arguments=("forward",),
            quick=("--tokens", "1", "64", "--experts", "4", "--repetitions", "2"),
        ),
        Part(
            "quantize.latency",
            "what low-rank corrections cost at inference",
            5,
            0.7,
            arguments=("latency",),
            quick=("--width", "512", "--layers", "2", "--lengths", "64", "--tokens", "4", "--repetitions", "2"),
        ),
        Part(
            "quantize.gptq",
            "GPTQ beside llmcompressor's",
            8,
            1.5,
            arguments=("gptq",),
            quick=("--layers", "0", "--bits", "4", "--windows", "2"),
            has_peers=True,
        ),
        Part(
            "quantize.whole",
            "quantising a model of half a billion parameters",
            20,
            1,
            arguments=("whole",),
            quick=(
                *("--width", "128", "--inner", "256", "--layers", "2", "--vocabulary", "512"),
                *("--windows", "2", "--methods", "rtn", "glowq"),
            ),
        ),
        Part(
            "recursive",
            "leaving early beside generate",
            8,
            0.5,
            quick=(
                *("--width", "192", "--layers", "8", "--vocabulary", "4096"),
                *("--prompts", "8", "--tokens", "8", "--repetitions", "2"),
            ),
        ),
        Part(
            "data.throughput",
            "data.prepare beside datasets.map and datatrove",
            8,
            2,
            arguments=("throughput",),
            quick=("--documents", "500", "--repetitions", "1"),
            has_peers=True,
        ),
        Part(
            "data.duplicates",
            "near-duplicates beside datasketch",
            1,
            0.5,
            arguments=("duplicates",),
            quick=("--documents", "300"),
            has_peers=True,
        ),
        Part(
            "data.memory",
            "memory of data.prepare on ten times the text",
            3,
            1,
            arguments=("memory",),
            quick=("--documents", "200"),
            has_peers=True,
        ),
        Part(
            "agent.rollouts",
            "rollouts beside generate",
            8,
            2,
            arguments=("rollouts",),
            quick=(
                *("--rollouts", "2", "--turn-tokens", "4", "--prompt", "64", "--told", "32"),
                *("--repetitions", "1"),
            ),
            hands_over=False,
        ),
        Part(
            "agent.step",
            "the phases of a reinforcement learning step",
            8,
            3,
            arguments=("step",),
            quick=("--rollouts", "2", "--turn-tokens", "8", "--steps", "2"),
            hands_over=False,
        ),
        Part(
            "agent.retrieval",
            "search by words, by meaning and by both",
            10,
            1,
            arguments=("retrieval",),
            quick=("--documents", "200", "--queries", "50"),
            hands_over=False,
        ),
    )
}


def chosen(names: Sequence[str]) -> list[Part]:
    """The parts and families `names`, in the order of `PARTS`; all without any. SystemExit tells what is unknown."""
    families = {part.partition(".")[0] for part in PARTS}
    for name in names:
        if name not in PARTS and name not in families:
            near = difflib.get_close_matches(name, [*PARTS, *families], 1)
            hint = f"; did you mean {near[0]}?" if near else "."
            sys.exit(f"no benchmark {name!r}{hint} Known: {', '.join(PARTS)}")
    wanted = names or tuple(families)
    return [part for name, part in PARTS.items() if name in wanted or name.partition(".")[0] in wanted]


def place(name: str) -> int:
    """Where the part `name` stands in the order of `PARTS`; one that is there no longer, after all."""
    return list(PARTS).index(name) if name in PARTS else len(PARTS)
