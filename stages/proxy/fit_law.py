"""`proxy.fit_law`: Step Law's form, fitted to one's own sweeps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Annotated, Any, ClassVar

from pydantic import Field

from stages.artifacts import Report, write_report
from stages.errors import UserError
from stages.stage import Context, Input, Output, Parameters, Stage


class FitLawParameters(Parameters):
    """How sure the intervals are."""

    confidence: Annotated[float, Field(gt=0, lt=1)] = 0.95
    """Of the intervals of the coefficients."""
    bootstrap: Annotated[int, Field(ge=10)] = 1000
    """Draws of the sweeps for the intervals."""

    def smoke(self) -> FitLawParameters:
        """A few draws."""
        return self.replaced(bootstrap=50)


class ProxyFitLaw(Stage):
    """Fit Step Law's exponents to the optima of several sweeps, with intervals from a bootstrap over the sweeps.

    Reads the reports of `proxy.sweep` at several sizes and budgets, at least four, in which the two do not only vary
    together. The law tells a batch when every sweep varied it. Give the report to input `law` of `proxy.step_law`. The
    intervals of the factors are wide (the published one of the learning rate spans a factor of 3): predict inside the
    range, as `proxy.step_law` does.
    """

    Params = FitLawParameters
    inputs: ClassVar[Mapping[str, Input]] = {"sweeps": Input(Report, many=True)}
    outputs: ClassVar[Mapping[str, Output]] = {"report": Output(Report)}
    metrics = ("rate_*", "batch_*", "sweeps")
    paper = "2503.04715"
    params: FitLawParameters

    def check(self, inputs: Mapping[str, Any]) -> None:
        """Enough sweeps, each with an optimum."""
        reports = inputs["sweeps"]
        for report in reports:
            report.detail("sweep", "is not that of a sweep", where="sweeps", fix="give reports of `proxy.sweep`")
        if len(reports) < 4:
            raise UserError(
                f"{len(reports)} sweeps do not decide the law's coefficients, expected 4 at least",
                where="sweeps",
                fix="sweep at two sizes and two budgets or more",
            )

    def run(self, context: Context) -> None:
        """Fit and report."""
        from stages.proxy.law import Cell, fit_law

        found = [report.content["details"]["sweep"] for report in context.inputs["sweeps"]]
        cells = [Cell(**{name: each[name] for name in Cell.__dataclass_fields__}) for each in found]
        edges = sum(not each["inside"] for each in found)
        if edges:
            context.say(f"{edges} of {len(found)} sweeps have their optimum on the edge: widen them")
        fixed = sum(cell.batch_tokens is None for cell in cells)
        if fixed:
            context.say(f"{fixed} of {len(found)} sweeps did not vary the batch: the law tells none")
        try:
            fit = fit_law(cells, self.params.confidence, self.params.bootstrap, context.seed)
        except ValueError as error:
            raise UserError(str(error), where="sweeps", fix="add sweeps at other sizes and budgets") from None
        law = asdict(fit.law)
        figures = {name: law[name] for name in fit.intervals}
        for name, (low, high) in fit.intervals.items():
            figures |= {f"{name}_low": low, f"{name}_high": high}
        context.metrics(**figures, sweeps=len(cells))
        details = {"fitted_law": law, "intervals": fit.intervals, "cells": found, "parameters": self.params.identity()}
        write_report(context.output("report"), "Fit of Step Law", figures, details)
