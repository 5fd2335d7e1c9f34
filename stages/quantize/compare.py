"""`quantize.compare`: a table and a figure of quantised models, by what they take and what they give."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from stages.artifacts import Report, write_report
from stages.stage import Context, Input, Output, Parameters, Stage

FIGURE = "front.svg"


class QuantizeCompare(Stage):
    """Put quantised models side by side: bytes, perplexity, the Pareto front, and whether corrections beat their base.

    Reads the reports of `quantize.*`, measured on the same text. Models that differ by the seed alone are one row, with
    the mean and the range. A setting is on the front when no other has a lower perplexity in as few bytes.
    """

    inputs: ClassVar[Mapping[str, Input]] = {"reports": Input(Report, many=True)}
    outputs: ClassVar[Mapping[str, Output]] = {"report": Output(Report)}
    metrics = ("models", "settings", "on_front", "parent_perplexity", "corrected_settings", "corrections_ahead")
    Params = Parameters
    params: Parameters

    def check(self, inputs: Mapping[str, Any]) -> None:
        """All reports are of quantised models, measured on the same text."""
        from stages.quantize.comparison import Arm, settings

        settings([Arm.of(report) for report in inputs["reports"]])

    def run(self, context: Context) -> None:
        """Sort, compare, draw and report."""
        from stages.quantize.comparison import FILE, Arm, corrections_ahead, front, markdown, rows, settings
        from stages.quantize.figures import draw_front

        arms = [Arm.of(report) for report in context.inputs["reports"]]
        made, out = settings(arms), context.output("report")
        ahead, corrected = corrections_ahead(made)
        context.metrics(
            models=len(arms),
            settings=len(made),
            on_front=len(front(made)),
            parent_perplexity=arms[0].figures["parent_perplexity"],
            corrected_settings=corrected,
            corrections_ahead=ahead,
        )
        table = rows(made)
        out.mkdir(parents=True, exist_ok=True)
        (out / FILE).write_text(markdown(table), encoding="utf-8")
        draw_front(out / FIGURE, made, front(made))
        details = {"comparison": table, "figures": [FIGURE]}
        write_report(out, "Comparison of quantised models", context.results, details)
