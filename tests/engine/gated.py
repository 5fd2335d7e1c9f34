"""Stages that wait, spawn and train, for tests of what happens in the middle of them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated, Literal

from stages.artifacts import Dataset, Model, Report
from stages.stage import EXECUTION, Context, Input, Output, Parameters, Stage
from tests.toy import Toy, read


class Gated(Toy):
    """Goes on once the file that `TOY_GATE` names is there."""

    def run(self, context: Context) -> None:
        while not Path(os.environ["TOY_GATE"]).exists():
            time.sleep(0.02)
        self.write(context, "through")


class Spawn(Toy):
    """Starts a child and a grandchild that outlast it, and sleeps."""

    def run(self, context: Context) -> None:
        script = "import subprocess, time; subprocess.Popen(['sleep', '3217']); time.sleep(300)"
        child = subprocess.Popen([sys.executable, "-c", script])
        apart = subprocess.Popen(["sleep", "300"], start_new_session=True)
        Path(os.environ["TOY_GATE"]).write_text(f"{child.pid} {apart.pid}")
        time.sleep(60)


class FillParameters(Parameters):
    kib: Annotated[int, EXECUTION] = 1
    """KiB to write."""
    place: Annotated[Literal["output", "scratch", "log", "store"], EXECUTION] = "output"
    """Where."""


class Fill(Toy):
    """Fills a disk: with its output, its scratch, its log, or with something else beside the store."""

    Params = FillParameters
    inputs = {"text": Input(Report)}

    def run(self, context: Context) -> None:
        data = b"x" * 1024 * self.params.kib
        match self.params.place:
            case "output":
                (context.output("text") / "figure.bin").write_bytes(data[1024:])
            case "scratch":
                (context.scratch / "ballast").write_bytes(data)
            case "log":
                print(data.decode(), flush=True)
            case "store" if self.params.kib > 1:
                with (context.out.parents[2] / "ballast").open("wb", buffering=0) as file:
                    for start in range(0, len(data), 1024):  # up to the last block
                        file.write(data[start : start + 1024])
        self.write(context, read(context.report("text")))


class TinyModel(Stage):
    """A random model of four layers."""

    outputs = {"model": Output(Model)}

    def run(self, context: Context) -> None:
        from tests.tiny import tiny_model

        tiny_model(context.output("model"), num_layers=4)


class TinyTokens(Stage):
    """Packed tokens for a model."""

    inputs = {"model": Input(Model)}
    outputs = {"train": Output(Dataset, schema="tokens"), "heldout": Output(Dataset, schema="tokens")}

    def run(self, context: Context) -> None:
        from tests.tiny import tokens_dataset

        tokens_dataset(context.output("train"), context.model("model").path, num_windows=64)
        tokens_dataset(context.output("heldout"), context.model("model").path, num_windows=8, seed=9)
