"""Stages that make models, curves and figures in no time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from stages.artifacts import Model, Report, write_report
from stages.stage import Context, Input, Output, Parameters, Stage

DRAWING = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 9 9"><script>alert("drawn")</script>'
    '<rect width="9" height="9" fill="teal"/></svg>'
)
DOT = bytes.fromhex(
    "89504e470d0a1a0a0000000d49484452000000010000000108060000001f15c4890000000d49444154789c6360606060000000050001"
    "a5f645400000000049454e44ae426082"
)


class MakeParameters(Parameters):
    size: int = 100
    """Bytes of weights."""
    steps: int = 0
    """Points of each curve."""


class Make(Stage):
    """A model, trained for a while."""

    Params = MakeParameters
    inputs = {"teacher": Input(Model, optional=True)}
    outputs = {"model": Output(Model), "report": Output(Report)}
    params: Any

    def run(self, context: Context) -> None:
        out = context.output("model")
        (out / "config.json").write_text(json.dumps({"size": self.params.size}))
        (out / "model.safetensors").write_bytes(b"x" * self.params.size)
        for step in range(1, self.params.steps + 1):
            context.log(step, loss=3.0 / step, learning_rate=1e-4, broken=float("nan"), once=1.0 if step < 2 else 0.0)
        context.say("<b>made</b> a model")
        context.metrics(parameters=10 * self.params.size, kl_to_parent=0.5, perplexity=99.0)
        write_report(context.output("report"), "Making", {}, {})


class MeasureParameters(Parameters):
    corpus: str = "wiki"
    """What is measured on."""


class Measure(Stage):
    """Measure a model; draw what was found."""

    Params = MeasureParameters
    inputs = {"model": Input(Model), "baseline": Input(Model, optional=True)}
    outputs = {"report": Output(Report)}
    params: Any

    def run(self, context: Context) -> None:
        size = context.model("model").config["size"]
        context.metrics(perplexity=1000 / size, boolq_acc=size / 400, num_tokens=512, decode_ratio=1.5)
        out = context.output("report")
        figures(out)
        write_report(out, "Needles & hay", context.results, {})


def figures(out: Path) -> None:
    """A hostile drawing, a small picture, the drawing as a picture, and one that is too large."""
    (out / "heat_map.svg").write_text(DRAWING)
    (out / "heat_map.png").write_bytes(DOT)
    (out / "dot.png").write_bytes(DOT)
    (out / "large.png").write_bytes(DOT + b"\0" * (2 * 2**20))
