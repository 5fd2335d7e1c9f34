"""A stage that takes no time."""

from __future__ import annotations

from stages.artifacts import Report, write_report
from stages.stage import Context, Input, Output, Parameters, Stage


class TrivialParameters(Parameters):
    number: int = 0
    """Which of many."""


class Trivial(Stage):
    """Writes its number."""

    Params = TrivialParameters
    inputs = {"above": Input(Report, many=True, optional=True)}
    outputs = {"report": Output(Report)}

    def run(self, context: Context) -> None:
        write_report(context.output("report"), "trivial", {}, {"number": self.params.number})
