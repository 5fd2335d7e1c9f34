"""`proxy.sweep`: the best learning rate and batch of a sweep, from the reports of its runs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from stages.artifacts import Report, write_report
from stages.errors import UserError
from stages.stage import Context, Input, Output, Parameters, Stage

if TYPE_CHECKING:
    from stages.proxy.record import Trained


class SweepParameters(Parameters):
    """Which points the fit is to, and how sure its interval is."""

    best_share: Annotated[float, Field(gt=0, le=1)] = 0.6
    """Share of the points, the best ones, that the quadratic is fitted to: far from the optimum it is none. As many as
    it has coefficients, and one more, are kept at least."""
    confidence: Annotated[float, Field(gt=0, lt=1)] = 0.95
    """Of the interval of the optimum."""
    bootstrap: Annotated[int, Field(ge=10)] = 200
    """Draws of the residuals for that interval."""

    def smoke(self) -> SweepParameters:
        """A few draws."""
        return self.replaced(bootstrap=10)


class ProxySweep(Stage):
    """Find the best learning rate and batch of a matrix of `proxy.train` over the two, or over the first alone.

    A convex quadratic is fitted to the held-out loss over the logarithms of learning rate and batch, to the better
    points of the sweep; its lowest point inside the sweep is the optimum. When that lies on the edge, `inside` is 0 and
    the sweep should be widened. Give the report to input `optimum` of `proxy.train`, or several to `proxy.fit_law`.
    """

    Params = SweepParameters
    inputs: ClassVar[Mapping[str, Input]] = {"proxies": Input(Report, many=True)}
    outputs: ClassVar[Mapping[str, Output]] = {"report": Output(Report)}
    metrics = ("learning_rate*", "batch_*", "loss", "inside", "points")
    paper = "2503.04715"
    params: SweepParameters

    def check(self, inputs: Mapping[str, Any]) -> None:
        """Runs of one recipe, one size and one budget, at four learning rates or more, or at three by three batches."""
        from stages.proxy.record import Trained

        _require_sweep([Trained.of(report) for report in inputs["proxies"]])

    def run(self, context: Context) -> None:
        """Fit, draw and report."""
        from stages.proxy.figures import draw_rates
        from stages.proxy.record import Trained
        from stages.proxy.sweeping import Swept, fit_sweep

        runs, params = [Trained.of(report) for report in context.inputs["proxies"]], self.params
        swept, first = Swept.of(runs), runs[0]
        try:
            fit = fit_sweep(swept, params.best_share, params.confidence, params.bootstrap, context.seed)
        except ValueError as error:
            raise UserError(str(error), where="proxies", fix="sweep a grid: 3 rates by 3 batches or more") from error
        if not fit.figures["inside"]:
            context.say("the optimum is on the edge of the sweep: widen it there")
        length = json.loads(first.setting)["sequence_length"]
        tokens = fit.figures["batch_sequences"] * length
        figures = {**fit.figures, "batch_tokens": tokens, "points": len(swept.losses)}
        context.metrics(**figures)
        lines, curves = (
            {f"batch {batch:g}": line for batch, line in each.items()}
            for each in (swept.lines(), swept.fitted_lines(fit.surface))
        )
        marks = {"optimum": figures["learning_rate"]}
        draw_rates(context.output("report") / "sweep.svg", lines, marks, curves=curves)
        sweep = {
            "parameters": first.parameters,
            "tokens": first.tokens,
            "learning_rate": figures["learning_rate"],
            "batch_tokens": figures["batch_tokens"] if 1 in swept.varied else None,
            "inside": bool(figures["inside"]),
        }
        optimum = {name: figures[name] for name in ("learning_rate", "batch_tokens")}
        points = {batch: list(zip(*line, strict=True)) for batch, line in lines.items()}
        details = {
            "sweep": sweep,
            "optimum": optimum,
            "points": points,
            "parameters": self.params.identity(),
            "figures": ["sweep.svg"],
        }
        write_report(context.output("report"), "Sweep of learning rate and batch", figures, details)


def _require_sweep(runs: Sequence[Trained]) -> None:
    settings = {(run.digest, run.parameters, run.tokens, run.setting) for run in runs}
    if len(settings) > 1:
        kinds = zip(("recipe", "size", "tokens", "setting"), zip(*settings, strict=True), strict=True)
        varied = [kind for kind, values in kinds if len(set(values)) > 1]
        raise UserError(
            f"the runs differ in {' and '.join(varied)}, a sweep varies learning rate, batch and seed alone",
            where="proxies",
            fix="give the arms of one matrix over them",
        )
    rates, batches = {run.learning_rate for run in runs}, {run.batch_sequences for run in runs}
    points = {(run.learning_rate, run.batch_sequences) for run in runs}
    least = 4 if len(batches) == 1 else 7
    if len(rates) < 3 or 1 < len(batches) < 3 or len(points) < least:
        raise UserError(
            f"{len(rates)} learning rates and {len(batches)} batches in {len(points)} points decide no quadratic",
            where="proxies",
            fix="sweep at least 4 learning rates, or 3 by 3 batches",
        )
