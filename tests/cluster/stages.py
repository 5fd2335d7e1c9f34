"""A stage that trains a tiny model, slowly enough to be disturbed."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from stages.artifacts import Report, write_report
from stages.stage import EXECUTION, Context, Output, Stage
from stages.training.settings import TrainingParameters

if TYPE_CHECKING:
    from stages.training.recipe import Recipe


class TrainParameters(TrainingParameters):
    model: Annotated[str, EXECUTION]
    """Directory of the model."""
    data: Annotated[str, EXECUTION]
    """Directory of the data."""
    step_seconds: Annotated[float, EXECUTION] = 0.0
    """Least time of a step."""


class Train(Stage):
    """Train a tiny model."""

    Params = TrainParameters
    outputs = {"text": Output(Report)}
    distributed = True
    isolated = True

    def run(self, context: Context) -> None:
        from stages.training.launch import run_training

        result = run_training(self.recipe(context), self.params, context)
        figures = {"loss": result.figures["loss"]}
        context.metrics(**figures)
        write_report(context.output("text"), "toy", figures, {"text": f"{figures['loss']:.6f}"})

    def recipe(self, context: Context) -> Recipe:
        from stages.artifacts import Dataset
        from tests.training.language_model import LanguageModel

        @dataclass
        class Slow(LanguageModel):
            seconds: float = 0.0

            def loss(self, model, batch):
                time.sleep(self.seconds)
                return super().loss(model, batch)

        data = Dataset(Path(self.params.data))
        return Slow(Path(self.params.model), data, context.scratch / "saved", seconds=self.params.step_seconds)


ORPHAN = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(1000)'])"


class Spawn(Stage):
    """Starts a process that outlives its parent, and waits; finishes at the second attempt."""

    outputs = {"text": Output(Report)}

    def run(self, context: Context) -> None:
        if not (mark := context.scratch / "mark").exists():
            mark.touch()
            subprocess.run([sys.executable, "-c", ORPHAN], start_new_session=True, check=True)
            context.say("started it")
            time.sleep(1000)
        write_report(context.output("text"), "toy", {}, {"text": "done"})


class Tell(Stage):
    """Tells how long a variable is."""

    outputs = {"text": Output(Report)}

    def run(self, context: Context) -> None:
        context.metrics(length=len(os.environ["PASSWORD"]))
        write_report(context.output("text"), "toy", {}, {"text": "told"})
