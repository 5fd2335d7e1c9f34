"""`transfer.extend`: stage 3 of hybrid transfer, plain next-token training on long windows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import Field

from stages.artifacts import Dataset, Model, Report, write_report
from stages.evaluate.matching import require_given_tokens, require_one_vocabulary
from stages.stage import EXECUTION, Context, Input, Output, Stage
from stages.training.preflight import require_training_tools
from stages.training.schedule import Schedule
from stages.training.settings import TRAINED, MeasuredTraining


class ExtendParameters(MeasuredTraining):
    """How to train on long windows. The defaults are HALO's (arXiv 2601.22156), a budget of tokens aside."""

    learning_rate: Annotated[float, Field(gt=0, le=1)] = 1e-5
    """Peak learning rate of AdamW."""
    schedule: Schedule = "constant"
    """Shape after the warm-up: `constant`, `linear` or `cosine` fall, or `wsd` (constant, then a linear fall)."""
    micro_batch: Annotated[int, Field(ge=1), EXECUTION] = 1
    """Sequences in one forward pass of one worker."""
    activation_checkpointing: Annotated[bool, EXECUTION] = True
    """Recompute activations in the backward pass: about a third slower, much less memory."""


class TransferExtend(Stage):
    """Train a converted model on long windows by cross-entropy, so that its linear heads learn to remember from afar.

    Stage 3 of HydraHead's transfer (arXiv 2606.20097): windows of 16384 tokens, a billion of them in the paper; the
    window is that of `data`. With `heldout` the report tells the distance to `teacher`, or without one to `model`.
    """

    Params = ExtendParameters
    inputs: ClassVar[Mapping[str, Input]] = {
        "model": Input(Model),
        "data": Input(Dataset, schema="tokens"),
        "heldout": Input(Dataset, schema="tokens", optional=True),
        "teacher": Input(Model, optional=True),
    }
    outputs: ClassVar[Mapping[str, Output]] = {"model": Output(Model), "report": Output(Report)}
    distributed = True
    isolated = True
    metrics = TRAINED
    paper = "2606.20097"
    params: ExtendParameters

    def preflight(self) -> None:
        """The packages that training imports are there."""
        require_training_tools()

    def check(self, inputs: Mapping[str, Any]) -> None:
        """One tokenizer everywhere, windows that fit the model."""
        if inputs.get("teacher") is not None:
            require_one_vocabulary(inputs["teacher"], inputs["model"], ("teacher", "model"))
        require_given_tokens(inputs["model"], inputs)

    def run(self, context: Context) -> None:
        """Train, save, measure and report."""
        from stages.training.language_model import LanguageModelling
        from stages.training.launch import run_training

        recipe = LanguageModelling(
            model=context.model("model"),
            data=context.dataset("data"),
            heldout=context.inputs.get("heldout"),
            heldout_windows=self.params.heldout_windows,
            measure_batch=self.params.micro_batch,
            parent=context.inputs.get("teacher") or context.model("model"),
            cache=context.scratch / "windows",
            out=context.output("model"),
        )
        result = run_training(recipe, self.params, context)
        context.metrics(**result.figures, **result.cost)
        details = result.details(self.params, context.seed)
        write_report(context.output("report"), "Training on long windows", result.figures, details)
