"""What `benchmarks/agent/credit.yaml` has found so far in a store: a table, and the curves of the reward as SVG."""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pipelines.cli.options import load_pipeline
from pipelines.spec.matrix import stage_slug
from pipelines.store import Store, open_store
from stages.artifacts import Report
from stages.figures import figure

PIPELINE: Final = Path(__file__).with_name("credit.yaml")
CREDITS: Final = {"igpo": "#0969da", "outcome": "#bf8700", "grpo": "#8c959f"}
SEEDS: Final = (0, 1, 2)
HELD_OUT: Final = ("success", "f1", "calls", "turns", "tokens", "well_formed")


@dataclass(frozen=True)
class Arm:
    """One training and its evaluation."""

    reward: Sequence[float]
    """Mean of the rollouts of each step."""
    held_out: Mapping[str, float]


def measure(options: argparse.Namespace) -> None:
    store, name = open_store(options.store), load_pipeline(str(PIPELINE), None).name
    arms = {credit: list(_arms(store, name, credit)) for credit in CREDITS}
    print(f"| | seeds | {' | '.join(HELD_OUT)} | reward, steps in halves |\n|{'---|' * (len(HELD_OUT) + 3)}")
    for of in ("base", "sft"):
        if manifest := store.last(name, stage_slug(f"evaluate_start[of={of}]")):
            print(f"| {of} | | {' | '.join(f'{manifest.metrics[each]:.3g}' for each in HELD_OUT)} | |")
    for credit, found in arms.items():
        if found:
            print(_row(credit, found))
    if options.figure:
        _draw(arms, options.figure)


def _arms(store: Store, pipeline: str, credit: str) -> Iterator[Arm]:
    for seed in SEEDS:
        learnt, evaluated = (
            store.last(pipeline, stage_slug(f"{stage}[credit={credit},seed={seed}]")) for stage in ("learn", "evaluate")
        )
        if learnt and evaluated:
            report = Report(store.fetch(learnt, "report"))
            yield Arm([step["reward"] for step in report.content["details"]["curves"]], evaluated.metrics)


def _row(credit: str, arms: Sequence[Arm]) -> str:
    cells = [_spread([arm.held_out[name] for arm in arms]) for name in HELD_OUT]
    halves = [[statistics.mean(half) for half in _halves(arm.reward)] for arm in arms]
    first, second = (_spread(values) for values in zip(*halves, strict=True))
    return f"| {credit} | {len(arms)} | {' | '.join(cells)} | {first}, {second} |"


def _halves(values: Sequence[float]) -> tuple[Sequence[float], Sequence[float]]:
    middle = len(values) // 2
    return values[:middle], values[middle:]


def _spread(values: Sequence[float]) -> str:
    mean = f"{statistics.mean(values):.3g}"
    return f"{mean} ± {statistics.stdev(values):.2g}" if len(values) > 1 else mean


def _draw(arms: Mapping[str, Sequence[Arm]], file: Path) -> None:
    """Means over seeds of the reward at each step, between the least and the most."""
    with figure(file, 6, 3) as made:
        axes = made.subplots()
        for credit, found in arms.items():
            if found:
                steps = list(zip(*(arm.reward for arm in found), strict=True))
                places = range(1, len(steps) + 1)
                axes.plot(places, [statistics.mean(step) for step in steps], color=CREDITS[credit], label=credit)
                low, high = [min(step) for step in steps], [max(step) for step in steps]
                axes.fill_between(places, low, high, color=CREDITS[credit], alpha=0.15, linewidth=0)
        axes.set_xlabel("step")
        axes.set_ylabel("reward of 16 rollouts")
        axes.legend(frameon=False)
