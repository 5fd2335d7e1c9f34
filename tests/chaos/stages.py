"""A stage that works in steps and saves each one, as training does, without training's imports."""

from __future__ import annotations

import hashlib
import os
import time
from typing import Annotated

from pydantic import Field

from stages.artifacts import Report, write_report
from stages.stage import EXECUTION, Context, Input, Output, Parameters, Stage


class StepsParameters(Parameters):
    count: Annotated[int, Field(ge=1)] = 20
    """Steps."""
    seconds: Annotated[float, Field(ge=0), EXECUTION] = 0.1
    """That each takes."""


class Steps(Stage):
    """Hashes what it reads again and again; goes on from the last step that was saved."""

    Params = StepsParameters
    inputs = {"text": Input(Report, optional=True)}
    outputs = {"text": Output(Report)}

    def run(self, context: Context) -> None:
        saved = context.scratch / "step"
        text = str(context.report("text").content["details"]["text"]) if "text" in context.inputs else ""
        step, text = saved.read_text().split() if saved.exists() else ("0", text or "start")
        for number in range(int(step) + 1, self.params.count + 1):
            time.sleep(self.params.seconds)
            text = hashlib.sha256(text.encode()).hexdigest()
            # As a training stage does: what is not whole must never be taken for a checkpoint.
            (context.scratch / "next").write_text(f"{number} {text}")
            (context.scratch / "next").replace(saved)
            context.log(number, loss=1.0 / number)
            print(f"step {number} in process {os.getpid()}", flush=True)
        (context.output("text") / "weights.bin").write_bytes(text.encode() * 1000)
        write_report(context.output("text"), "steps", {}, {"text": text})
