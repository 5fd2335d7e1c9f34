"""A stage that does next to nothing: it says that it ran, and writes its number and its mark."""

from __future__ import annotations

from pathlib import Path

from stages.artifacts import Report, write_report
from stages.stage import Context, Input, Output, Parameters, Stage


class TrivialParameters(Parameters):
    number: int = 0
    """Which of many."""
    mark: str = "0"
    """What to add."""


class Trivial(Stage):
    """Writes its number and mark."""

    Params = TrivialParameters
    inputs = {"above": Input(Report, many=True, optional=True)}
    outputs = {"report": Output(Report)}

    def run(self, context: Context) -> None:
        with Path("executed").open("a") as stream:
            stream.write(f"{self.params.number}\n")
        details = {"number": self.params.number, "mark": self.params.mark}
        write_report(context.output("report"), "trivial", {}, details)
