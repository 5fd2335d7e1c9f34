"""`proxy.step_law`: the learning rate and batch to train with, from the size of the model and the budget of tokens."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self

from pydantic import Field

from stages.artifacts import Model, Report, write_report
from stages.errors import UserError
from stages.proxy.sizes import is_counted
from stages.source.weights import weight_files
from stages.stage import Context, Input, Output, Parameters, Stage


class StepLawParameters(Parameters):
    """What is to be trained."""

    tokens: Annotated[int, Field(ge=1)]
    """Tokens to train on, D."""
    parameters: Annotated[int, Field(ge=1)] | None = None
    """Parameters outside the embeddings, N; those of input `model` without it."""
    sequence_length: Annotated[int, Field(ge=2)] = 2048
    """Tokens of a window: the batch is told in whole sequences as well."""
    extrapolate: bool = False
    """Follow the formula outside the range that it was fitted to. Without it, the nearer end of the range counts."""

    def smoke(self) -> Self:
        """The formula takes no time."""
        return self.replaced()


class ProxyStepLaw(Stage):
    """Tell the learning rate and batch that Step Law finds best for a model of N parameters trained on D tokens.

    For pretraining from scratch with AdamW: not for distillation, continued pretraining or LoRA. Outside the fitted
    range (0.06 to 1 billion parameters, 2 to 100 billion tokens) the nearer end counts, and a warning is given. Give
    the report to input `optimum` of `proxy.train`. With `law`, a report of `proxy.fit_law`, your own coefficients and
    range take the place of the published ones.
    """

    Params = StepLawParameters
    inputs: ClassVar[Mapping[str, Input]] = {
        "model": Input(Model, optional=True),
        "law": Input(Report, optional=True),
    }
    outputs: ClassVar[Mapping[str, Output]] = {"report": Output(Report)}
    metrics = ("learning_rate", "batch_tokens", "batch_sequences", "parameters", "tokens", "clamped")
    paper = "2503.04715"
    params: StepLawParameters

    def check(self, inputs: Mapping[str, Any]) -> None:
        """A size is given once, and `law` is a fitted law."""
        if (self.params.parameters is None) == (inputs.get("model") is None):
            given = "neither" if self.params.parameters is None else "both"
            raise UserError(f"the size is given by {given} of `parameters` and input `model`", fix="give one of them")
        if inputs.get("law") is not None:
            law_of(inputs["law"])

    def run(self, context: Context) -> None:
        """Evaluate the law and report."""
        from stages.proxy.law import STEP_LAW, clamped

        law = STEP_LAW if context.inputs.get("law") is None else law_of(context.report("law"))
        size = self.params.parameters or count_parameters(context.model("model").path)
        asked = {"parameters": float(size), "tokens": float(self.params.tokens)}
        allowed = {"parameters": law.parameters_range, "tokens": law.tokens_range}
        inside = {name: clamped(value, allowed[name]) for name, value in asked.items()}
        outside = [name for name, value in asked.items() if inside[name] != value]
        for name in outside:
            context.say(_warning(name, asked[name], allowed[name], self.params.extrapolate))
        used = asked if self.params.extrapolate else inside
        rate, batch = law.learning_rate(**used), self._batch(law.batch(used["tokens"]))
        if not batch:
            context.say("the law tells no batch: its sweeps did not vary it")
        figures = {
            "learning_rate": rate,
            **batch,
            **asked,
            "clamped": float(bool(outside) and not self.params.extrapolate),
        }
        context.metrics(**figures)
        details = {"outside": outside, "range": allowed, "law": law.__dict__, "own_law": law is not STEP_LAW}
        details["optimum"] = {name: figures[name] for name in ("learning_rate", "batch_tokens") if name in figures}
        details["parameters"] = self.params.identity()
        write_report(context.output("report"), "Step Law", figures, details)

    def _batch(self, tokens: float | None) -> dict[str, float]:
        """The batch in tokens and in whole sequences, where the law tells one."""
        from stages.proxy.law import whole_sequences

        if tokens is None:
            return {}
        return {"batch_tokens": tokens, "batch_sequences": whole_sequences(tokens, self.params.sequence_length)}


def law_of(report: Report) -> Any:
    """The `Law` that a report of `proxy.fit_law` holds. Raises UserError for another report."""
    from stages.proxy.law import Law

    found = report.detail("fitted_law", "holds no law", where="law", fix="give one of `proxy.fit_law`")
    ranges = {name: tuple(found[name]) for name in ("parameters_range", "tokens_range")}
    return Law(**{**found, **ranges})


def count_parameters(directory: Path) -> int:
    """Parameters outside the embeddings of a model, from the headers of its safetensors files."""
    shapes = [item for file in weight_files(directory) for item in _shapes(file)]
    if not shapes:
        raise UserError(f"{directory} has no safetensors to count", where="model", fix="give `parameters` instead")
    return sum(math.prod(shape) for name, shape in shapes if is_counted(name, shape))


def _shapes(file: Path) -> Iterator[tuple[str, list[int]]]:
    with file.open("rb") as stream:
        header = json.loads(stream.read(struct.unpack("<Q", stream.read(8))[0]))
    yield from ((name, entry["shape"]) for name, entry in header.items() if name != "__metadata__")


def _warning(name: str, value: float, allowed: tuple[float, float], extrapolate: bool) -> str:
    what = "the formula is followed outside of it" if extrapolate else "the nearer end counts"
    return f"{name} {value:.3g} is outside the fitted range {allowed[0]:.3g} to {allowed[1]:.3g}: {what}"
