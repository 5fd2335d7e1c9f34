"""`proxy.probe`: which learning rates a proxy can be trusted at, from a few short runs."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self

from pydantic import Field, model_validator

from stages.artifacts import Dataset, Model, Report, write_report
from stages.errors import DivergedError, UserError
from stages.proxy.checks import check_proxy_inputs
from stages.proxy.one_run import Plan, train_proxy
from stages.proxy.settings import ProxyParameters
from stages.stage import Context, Input, Output, Stage
from stages.training.preflight import require_training_tools


class ProbeParameters(ProxyParameters):
    """The proxy, as for `proxy.train`, and the rates to try. The schedule is that of the runs to come."""

    tokens: Annotated[int, Field(ge=1)] = 200_000
    """Tokens of each probe, at a constant learning rate; rounded up to a multiple of `ratio` steps."""
    run_tokens: Annotated[int, Field(ge=1)] = 2_000_000
    """Tokens of the runs to come."""
    lowest_rate: Annotated[float, Field(gt=0, le=1)] = 3e-6
    """Learning rate of the first probe."""
    num_rates: Annotated[int, Field(ge=3, le=20)] = 6
    """Probes, each at `ratio` times the rate of the one before."""
    ratio: Annotated[int, Field(ge=2, le=10)] = 4
    """Factor between neighbouring rates."""
    tolerance: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """How far two probes at equal rate times steps may stand apart, as a share of what the slower one fell."""
    least_share: Annotated[float, Field(gt=0, lt=1)] = 0.8
    """How far the runs to come have to fall, as a share of the best probe's fall."""

    @model_validator(mode="after")
    def _rates_below_one(self) -> Self:
        highest = self.lowest_rate * self.ratio ** (self.num_rates - 1)
        if highest > 1:
            raise ValueError(f"the last probe would have learning rate {highest:.3g}, expected at most 1")
        if self.learning_rate != type(self).model_fields["learning_rate"].default:
            raise ValueError(
                "learning_rate: the probes have rates of their own; set `lowest_rate`, `ratio`, `num_rates`"
            )
        return self

    def smoke(self) -> Self:
        """Three short probes."""
        return super().smoke().replaced(num_rates=3)


class ProxyProbe(Stage):
    """Find the window of learning rates for proxies: small enough to follow the gradient flow, and no smaller.

    Short runs on one recipe at constant rates a factor apart. The window's upper end is the highest rate at which a run
    still stands where one at the rate below it stands after as many more steps; its lower end is where the runs to come
    would fall by `least_share` of the best probe. Give the report to input `optimum` of `proxy.train`: it tells the
    standard rate and the reduction that leads into the window.
    """

    Params = ProbeParameters
    inputs: ClassVar[Mapping[str, Input]] = {
        "model": Input(Model),
        "data": Input(Dataset, schema="tokens"),
        "validation": Input(Dataset, schema="tokens", many=True),
    }
    outputs: ClassVar[Mapping[str, Output]] = {"report": Output(Report)}
    distributed = True
    metrics = ("learning_rate", "reduction", "reduced_learning_rate", "window_*", "initial_loss", "best_loss")
    paper = "2512.24503"
    params: ProbeParameters

    def preflight(self) -> None:
        """The packages that training imports are there."""
        require_training_tools()

    def check(self, inputs: Mapping[str, Any]) -> None:
        """As for `proxy.train`, and enough steps to compare probes."""
        check_proxy_inputs(self.params, inputs)
        step_tokens = self._step_tokens(inputs["data"])
        if self.params.tokens < self.params.ratio * step_tokens:
            raise UserError(
                f"tokens: {self.params.tokens} is less than {self.params.ratio} steps of {step_tokens} tokens, and a "
                f"probe is looked at after 1/{self.params.ratio} of its steps",
                fix=f"set tokens to {self.params.ratio * step_tokens} or more",
            )

    def run(self, context: Context) -> None:
        """Train the probes one after the other, find the window, draw and report."""
        from stages.proxy.figures import draw_rates
        from stages.proxy.window import find_window

        probes, curves = self._probe(context)
        try:
            window = find_window(probes, self._longer(context), self.params.tolerance, self.params.least_share)
        except ValueError as error:
            raise UserError(
                str(error),
                where="data",
                fix="lower `lowest_rate`, or look at whether data and validation are of one kind",
            ) from None
        if window.best == probes.rates[-1] and len(probes.rates) == self.params.num_rates:
            context.say("the loss still falls at the highest rate: raise `num_rates`")
        if window.lowest > window.highest:
            more = window.lowest / window.highest
            context.say(f"no window: the runs to come are too short for rates that low; {more:.2g} times the tokens do")
        figures = {
            "learning_rate": window.best,
            "reduction": max(1.0, window.best / window.suggested),
            "reduced_learning_rate": window.suggested,
            "window_low": window.lowest,
            "window_high": window.highest,
            "initial_loss": probes.initial,
            "best_loss": float(probes.late.min()),
        }
        context.metrics(**figures)
        shown = (window.lowest, window.highest) if window.lowest < window.highest else ()
        early = f"after 1/{probes.ratio} of the steps"
        lines = {early: (probes.rates, probes.early), "after all steps": (probes.rates, probes.late)}
        draw_rates(context.output("report") / "window.svg", lines, {"standard": window.best}, shown)
        details = {
            "optimum": {name: figures[name] for name in ("learning_rate", "reduction")},
            "probes": curves,
            "drift_error": probes.drift_error().tolist(),
            "parameters": self.params.identity(),
            "figures": ["window.svg"],
        }
        write_report(context.output("report"), "Window of learning rates", figures, details)

    def _probe(self, context: Context) -> tuple[Any, list[dict[str, Any]]]:
        import numpy as np

        from stages.proxy.window import Probes

        params, rows = self.params, []
        for number in range(params.num_rates):
            rate = params.lowest_rate * params.ratio**number
            context.say(f"probe {number + 1} of {params.num_rates}: learning rate {rate:.3g}")
            row = self._one(context, rate, context.scratch / f"probe-{number}")
            if row is None:
                context.say(f"training diverges at learning rate {rate:.3g}: no higher one is tried")
                break
            rows.append(row)
        if len(rows) < 2:
            raise UserError(
                f"training diverges at learning rate {params.lowest_rate * params.ratio ** len(rows):.3g}, and two "
                "probes below it are needed to compare",
                fix=f"lower lowest_rate: {params.lowest_rate:g}",
            )
        columns = {name: np.array([row[name] for row in rows]) for name in ("rate", "early", "late")}
        probes = Probes(columns["rate"], columns["early"], columns["late"], rows[0]["initial"], params.ratio)
        return probes, rows

    def _one(self, context: Context, rate: float, scratch: Path) -> dict[str, Any] | None:
        """The losses of one probe, None where they are no numbers; one that a stopped run had finished is not trained
        again.
        """
        done = scratch / "done.json"
        if done.exists():
            return json.loads(done.read_text(encoding="utf-8"))
        own = replace(context, scratch=scratch)
        tokens = self._num_steps(context) * self._step_tokens(context.dataset("data"))
        constant = self.params.replaced(schedule="constant", warmup_fraction=0.0, tokens=tokens)
        plan, cache = Plan(rate, 1.0, self.params.batch_sequences), context.scratch / "windows"
        try:
            curve = train_proxy(constant, plan, own, self.params.ratio, cache).trained.curve
        except DivergedError:
            return None
        row = {"rate": rate, "initial": curve[0][1], "early": curve[1][1], "late": curve[-1][1], "curve": curve}
        if not all(math.isfinite(row[name]) for name in ("early", "late")):
            return None
        scratch.mkdir(parents=True, exist_ok=True)
        part = done.with_suffix(".part")
        part.write_text(json.dumps(row), encoding="utf-8")
        part.replace(done)
        return row

    def _longer(self, context: Context) -> float:
        """Sum of the learning rates of a run to come over that of a probe, at equal peaks."""
        from stages.training.schedule import LearningRate

        params = self.params
        num_steps = math.ceil(params.run_tokens / self._step_tokens(context.dataset("data")))
        rate = LearningRate(
            1.0, num_steps, params.schedule, params.warmup_fraction, params.final_fraction, params.decay_fraction
        )
        return sum(rate.at(step) for step in range(num_steps)) / self._num_steps(context)

    def _num_steps(self, context: Context) -> int:
        """Steps of a probe: a whole number of them comes before the early look."""
        early = math.ceil(self.params.tokens / (self.params.ratio * self._step_tokens(context.dataset("data"))))
        return self.params.ratio * early

    def _step_tokens(self, data: Dataset) -> int:
        return self.params.batch_sequences * data.card.sequence_length
