"""The seconds of a step of `agent.rl`, by phase."""

from __future__ import annotations

import argparse
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.sources import PASSAGES, source_model
from stages.agent.environment.index import AgentIndex
from stages.agent.questions.stage import AgentQuestions
from stages.agent.rl.stage import AgentLearn
from stages.artifacts import Dataset, Model
from stages.source.dataset import SourceDataset
from stages.stage import Context, Stage

PHASES = ("rollouts", "scoring", "reference")


def measure(options: argparse.Namespace) -> None:
    with TemporaryDirectory() as directory:
        here = Path(directory)
        model = options.model or source_model(here / "source")
        _run(SourceDataset, {}, here / "text", dataset=PASSAGES, text_field="passage", limit=300)
        _run(AgentIndex, {"text": Dataset(here / "text" / _name(SourceDataset))}, here / "index", visit_characters=600)
        index = Dataset(here / "index" / "index")
        _run(AgentQuestions, {"index": index}, here / "questions", kinds=("cloze",), per_kind=32)
        questions = Dataset(here / "questions" / "train")
        events = _run(
            AgentLearn,
            {"model": Model(model), "index": index, "questions": questions},
            here / "rl",
            steps=options.steps,
            questions=options.questions,
            rollouts=options.rollouts,
            turns=options.turns,
            turn_tokens=options.turn_tokens,
            credit=options.credit,
            staleness=options.staleness,
            precision=options.precision,
        )
    _print(events, options)


def _run(stage: type[Stage], inputs: dict[str, Any], directory: Path, **params: Any) -> list[dict[str, Any]]:
    events: list[dict[str, Any]] = []
    (directory / "scratch").mkdir(parents=True)
    stage(stage.Params(**params)).run(Context(inputs, directory, directory / "scratch", emit=events.append))
    return events


def _name(stage: type[Stage]) -> str:
    return next(name for name, output in stage.outputs.items() if output.kind is Dataset)


def _print(events: list[dict[str, Any]], options: argparse.Namespace) -> None:
    curves: dict[int, dict[str, float]] = {}
    for event in events:
        if event["event"] == "curve":
            curves.setdefault(event["step"], {}).update(event["values"])
    last = curves[max(curves) - options.staleness]  # beside the very last updates nothing is written
    num_rollouts = options.questions * options.rollouts
    whole = num_rollouts / last["rollouts_per_second"]
    writing = {phase: last.get(f"seconds_{phase}", 0.0) for phase in PHASES}
    seconds = {"waiting": last["seconds_waiting"]} if "seconds_waiting" in last else dict(writing)
    seconds["update"] = whole - sum(seconds.values())
    print(
        f"{num_rollouts} rollouts of {last['turns']:.1f} turns, {last['rollout_tokens']:.0f} tokens, of which "
        f"{last['sampled_tokens']:.0f} written\n\n| phase | s | share |\n|---|---|---|"
    )
    for phase, value in {**seconds, "step": whole}.items():
        print(f"| {phase} | {value:.2f} | {value / whole:.0%} |")
    if "waiting" in seconds:
        print("\nin the process beside: " + ", ".join(f"{phase} {value:.2f} s" for phase, value in writing.items()))
