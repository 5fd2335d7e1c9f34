"""`transfer.align`: stage 1 of hybrid transfer, each hybrid layer alone learns what the teacher's attention gave."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import Field

from stages.artifacts import Dataset, Model, Report, write_report
from stages.evaluate.matching import require_given_tokens
from stages.stage import Context, Input, Output, Stage
from stages.training.preflight import require_training_tools
from stages.training.settings import TRAINED, MeasuredTraining
from stages.transfer.hybrid import check_pair


class AlignParameters(MeasuredTraining):
    """How to align. The defaults are HALO's (arXiv 2601.22156), a budget of tokens aside."""

    learning_rate: Annotated[float, Field(gt=0, le=1)] = 1e-3
    """Peak learning rate of AdamW."""
    final_fraction: Annotated[float, Field(ge=0, le=1)] = 0.01
    """Learning rate at the end, as a share of the peak; unused by `constant`."""


class TransferAlign(Stage):
    """Train only the hybrid layers of a converted model, each to give what the teacher's attention layer gave.

    Stage 1 of HydraHead's transfer (arXiv 2606.20097): mean squared error of each attention layer's output, on the
    teacher's own hidden states, so that layers do not depend on each other. The teacher and the hybrid layers are held,
    never two models. With `heldout` the report tells the error of every layer as a share of the teacher's output, and
    the distance of the whole model to the teacher.
    """

    Params = AlignParameters
    inputs: ClassVar[Mapping[str, Input]] = {
        "teacher": Input(Model),
        "student": Input(Model),
        "data": Input(Dataset, schema="tokens"),
        "heldout": Input(Dataset, schema="tokens", optional=True),
    }
    outputs: ClassVar[Mapping[str, Output]] = {"model": Output(Model), "report": Output(Report)}
    distributed = True
    isolated = True
    metrics = ("layer_error", *TRAINED)
    paper = "2606.20097"
    params: AlignParameters

    def preflight(self) -> None:
        """The packages that training imports are there."""
        require_training_tools()

    def check(self, inputs: Mapping[str, Any]) -> None:
        """The student is the teacher with hybrid heads; one tokenizer everywhere, windows that fit."""
        check_pair(inputs["teacher"], inputs["student"])
        require_given_tokens(inputs["teacher"], inputs, role="teacher")

    def run(self, context: Context) -> None:
        """Train, save, measure and report."""
        from stages.training.launch import run_training
        from stages.transfer.alignment import Alignment

        recipe = Alignment(
            teacher=context.model("teacher"),
            student=context.model("student"),
            data=context.dataset("data"),
            heldout=context.inputs.get("heldout"),
            heldout_windows=self.params.heldout_windows,
            measure_batch=self.params.micro_batch,
            cache=context.scratch / "windows",
            out=context.output("model"),
            layer_errors=context.scratch / "layer_errors.json",
        )
        result = run_training(recipe, self.params, context)
        context.metrics(**result.figures, **result.cost)
        details = result.details(self.params, context.seed)
        if recipe.heldout is not None:
            details["layer_error"] = json.loads(recipe.layer_errors.read_text(encoding="utf-8"))
        write_report(context.output("report"), "Alignment of hybrid layers", result.figures, details)
