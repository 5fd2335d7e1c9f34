"""`distill.student`: a smaller model cut out of a pretrained one, as the same standard class."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from stages.artifacts import Dataset, Model, Report, write_report
from stages.distill.shapes import Shape, require_possible, student_shape
from stages.errors import UserError
from stages.evaluate.matching import require_given_tokens, text_config
from stages.evaluate.measured import DISTANCE
from stages.stage import EXECUTION, Context, Input, Output, Parameters, Stage
from stages.training.checks import check_plain, check_supported

Share = Annotated[float, Field(gt=0, le=1)]


class StudentParameters(Parameters):
    """What is kept of depth and width, and by which measure."""

    depth_fraction: Share = 1.0
    """Share of the layers that stays, at least 2."""
    depth: Literal["uniform", "block_influence", "ablation"] = "uniform"
    """Which layers stay: evenly spread (arXiv 2408.11796), those that turn their input most (ShortGPT, arXiv
    2403.03853), or those without which the likelihood falls most."""
    layers: tuple[Annotated[int, Field(ge=0)], ...] | None = None
    """The layers that stay, by number from 0, whatever `depth` says."""
    heads_fraction: Share = 1.0
    """Share of the key-value heads that stays in each layer, with the queries that read them, by the norm of what they
    give (Minitron, arXiv 2407.14679)."""
    ffn_fraction: Share = 1.0
    """Share of the channels that stays in each feed-forward part, by their mean absolute activation."""
    hidden_fraction: Share = 1.0
    """Share of the hidden channels that stays in the whole model, by their mean absolute value after the norms."""
    multiple: Annotated[int, Field(ge=1)] = 32
    """Feed-forward and hidden sizes that shrink are rounded to a multiple of it."""
    weights: Literal["kept", "fresh"] = "kept"
    """`fresh`: random ones in the shape of what stays, as its architecture draws them, by the seed: a student that
    knows nothing, to compare with."""
    calibration_windows: Annotated[int, Field(ge=1)] = 64
    """Windows of `data` on which importance is measured, from the start."""
    heldout_windows: Annotated[int, Field(ge=1)] = 32
    """Windows of `heldout` on which the distance to the teacher is measured."""
    batch_size: Annotated[int, Field(ge=1), EXECUTION] = 4
    """Windows in a forward pass."""

    @model_validator(mode="after")
    def _ascending(self) -> StudentParameters:
        if self.layers is not None and (not self.layers or list(self.layers) != sorted(set(self.layers))):
            raise ValueError(f"layers: {list(self.layers)} are not ascending; name each once, in order")
        return self

    @property
    def narrows(self) -> bool:
        """Whether anything but depth shrinks."""
        return min(self.heads_fraction, self.ffn_fraction, self.hidden_fraction) < 1

    @property
    def measures(self) -> bool:
        """Whether what stays depends on what text does to the model."""
        return self.narrows or (self.layers is None and self.depth_fraction < 1 and self.depth != "uniform")

    def smoke(self) -> Self:
        """A few windows, and sizes that a small model has."""
        few = {"calibration_windows": 2, "heldout_windows": 2, "multiple": 8, "hidden_fraction": 1.0, "layers": None}
        return self.replaced(**few)


class DistillStudent(Stage):
    """Cut a smaller model out of a pretrained one: fewer layers, heads, feed-forward channels or hidden channels.

    What stays are copies of the teacher's weights; nothing is trained. The result is a model of the teacher's standard
    class, a student to give to `distill.logits`. The report tells the scores and what was kept. With `weights: fresh`
    only the shape stays.
    """

    Params = StudentParameters
    inputs: ClassVar[Mapping[str, Input]] = {
        "teacher": Input(Model),
        "data": Input(Dataset, schema="tokens", optional=True),
        "heldout": Input(Dataset, schema="tokens", optional=True),
    }
    outputs: ClassVar[Mapping[str, Output]] = {"model": Output(Model), "report": Output(Report)}
    metrics = ("layers", "parameters", "parameters_ratio", *DISTANCE)
    paper = "2408.11796"
    params: StudentParameters

    def check(self, inputs: Mapping[str, Any]) -> None:
        """A standard model whose parts are known, a shape its architecture has, text where importance is measured."""
        teacher: Model = inputs["teacher"]
        _check_standard(teacher)
        config = text_config(teacher.config)
        for layer in self.params.layers or ():
            if layer >= config["num_hidden_layers"]:
                raise UserError(
                    f"layers names layer {layer}, the teacher has {config['num_hidden_layers']}, counted from 0",
                    fix="name layers that are there",
                )
        if self.params.narrows:
            require_possible(teacher.config["model_type"], self._shape(teacher), Shape.of(config))
        if self.params.measures and inputs.get("data") is None:
            raise UserError("importance is measured on text, and there is none", fix="give tokens as input `data`")
        require_given_tokens(teacher, inputs, role="teacher")

    def run(self, context: Context) -> None:
        """Measure importance, cut, save, measure the distance and report."""
        from stages.distill.cutting import cut_student

        shape = self._shape(context.model("teacher"))
        figures, details = cut_student(self.params, shape, context)
        context.metrics(**figures)
        details["parameters"] = self.params.identity()
        write_report(context.output("report"), "Student cut out of its teacher", figures, details)

    def _shape(self, teacher: Model) -> Shape:
        params = self.params
        shares = {"heads": params.heads_fraction, "ffn": params.ffn_fraction, "hidden": params.hidden_fraction}
        return student_shape(Shape.of(text_config(teacher.config)), **shares, multiple=params.multiple)


def _check_standard(teacher: Model) -> None:
    check_plain("teacher", teacher, "nothing can be cut out of it", fix="prune before any conversion")
    fix = "take a teacher of one of these, or `depth_fraction` of `distill.logits`, which takes any"
    check_supported(teacher, "parts", fix=fix)
