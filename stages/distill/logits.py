"""`distill.logits`: a student learns its teacher's next-token distributions (arXiv 1503.02531).

Without a student, the teacher itself loses layers, evenly over its depth (arXiv 2408.11796), and is taught by its whole
self. The result is a model of the teacher's standard class with its tokenizer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from stages.artifacts import Dataset, Model, Report, write_report
from stages.errors import UserError
from stages.stage import Context, Input, Output, Stage
from stages.training.checks import check_data, check_one_vocabulary
from stages.training.preflight import require_training_tools
from stages.training.settings import TRAINED, TrainingParameters


class DistillParameters(TrainingParameters):
    """How to distil: the student, the loss, and the training itself."""

    depth_fraction: Annotated[float, Field(gt=0, le=1)] = 2 / 3
    """Share of the teacher's layers that the student keeps (at least 2); unused when a student is given."""
    kl_weight: Annotated[float, Field(ge=0)] = 1.0
    """Weight of the forward KL to the teacher, which is multiplied by temperature squared."""
    ce_weight: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the cross-entropy with the text itself."""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """Both distributions of the KL are softened by it: 1 leaves them as they are."""
    heldout_windows: Annotated[int, Field(ge=1)] = 128
    """Windows of the held-out data that the student is measured on, from the start."""

    @model_validator(mode="after")
    def _some_loss(self) -> DistillParameters:
        if self.kl_weight == self.ce_weight == 0:
            raise ValueError("kl_weight and ce_weight are both 0: nothing would be learnt; set one of them")
        return self

    def smoke(self) -> Self:
        """A few steps, measured on a few windows."""
        return super().smoke().replaced(heldout_windows=min(self.heldout_windows, 4))


class DistillLogits(Stage):
    """Distil a teacher into a student by the KL of their next-token distributions, then measure what is left between.

    Without the input `student` the student is the teacher with `depth_fraction` of its layers. With the input `heldout`
    the report tells KL to the teacher, perplexity ratio and top-1 agreement.
    """

    Params = DistillParameters
    inputs = {
        "teacher": Input(Model),
        "data": Input(Dataset, schema="tokens"),
        "heldout": Input(Dataset, schema="tokens", optional=True),
        "student": Input(Model, optional=True),
    }
    outputs = {"model": Output(Model), "report": Output(Report)}
    distributed = True
    isolated = True
    metrics = TRAINED
    paper = "1503.02531"

    params: DistillParameters

    def preflight(self) -> None:
        """The packages that training imports are there."""
        require_training_tools()

    def check(self, inputs: Mapping[str, Any]) -> None:
        """One tokenizer and one vocabulary everywhere, windows that fit the models, layers to prune."""
        teacher, student = inputs["teacher"], inputs.get("student")
        if student is None:
            _check_depth(teacher)
        else:
            check_one_vocabulary(teacher, student)
        for role, model in (("teacher", teacher), ("student", student)):
            for name in ("data", "heldout"):
                if model is not None and inputs.get(name) is not None:
                    check_data(role, model, name, inputs[name])

    def run(self, context: Context) -> None:
        """Train, save the student, measure it and report."""
        from stages.distill.recipe import Distillation
        from stages.training.launch import run_training

        recipe = Distillation.of(self.params, context)
        result = run_training(recipe, self.params, context)
        context.metrics(**result.figures, **result.cost)
        details = {"parameters": self.params.identity(), "seed": context.seed}
        write_report(context.output("report"), "Logit distillation", result.figures, details)


def _check_depth(teacher: Model) -> None:
    if teacher.grafts:
        raise UserError(
            f"the teacher has grafts ({', '.join(graft['name'] for graft in teacher.grafts)}), no layer can be dropped",
            fix="give a student as input `student`, or prune the model before it was converted",
        )
    num_layers = teacher.config.get("num_hidden_layers")
    if not isinstance(num_layers, int) or num_layers < 2:
        raise UserError(
            f"the teacher's config.json says num_hidden_layers {num_layers}, pruning by depth needs at least 2",
            fix="give a student as input `student`",
        )
