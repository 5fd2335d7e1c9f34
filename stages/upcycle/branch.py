"""`upcycle.branch`: a copy of the seed goes on training on one domain, with some of the old data among it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import Field

from stages.artifacts import Dataset, Model, Report, write_report
from stages.evaluate.matching import require_given_tokens
from stages.stage import Context, Input, Output, Stage
from stages.training.preflight import require_training_tools
from stages.training.settings import TRAINED, MeasuredTraining
from stages.upcycle.matching import check_one_length, check_source


class BranchParameters(MeasuredTraining):
    """How to train a branch. The defaults are those of BAM's small model (arXiv 2408.08274), its tokens aside."""

    learning_rate: Annotated[float, Field(gt=0, le=1)] = 6e-5
    """Peak learning rate of AdamW: half of the peak that the seed was pretrained with, 1.2e-4 in the paper."""
    weight_decay: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Decoupled weight decay of matrices; vectors (norms, biases) never decay."""
    replay_share: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of the windows that come from `replay`, so that the branch keeps what the seed knew; unused without it."""


class UpcycleBranch(Stage):
    """Train a copy of a seed on one domain: an expert to be of `upcycle.btx` or `upcycle.bam` (arXiv 2408.08274).

    Branches are arms of a matrix over domains; they know nothing of each other and run side by side. With `replay`, a
    fixed share of the windows is text like the seed's own. With `heldout` the report tells how far the branch went.
    """

    Params = BranchParameters
    inputs: ClassVar[Mapping[str, Input]] = {
        "model": Input(Model),
        "data": Input(Dataset, schema="tokens"),
        "replay": Input(Dataset, schema="tokens", optional=True),
        "heldout": Input(Dataset, schema="tokens", optional=True),
    }
    outputs: ClassVar[Mapping[str, Output]] = {"model": Output(Model), "report": Output(Report)}
    distributed = True
    isolated = True
    metrics = TRAINED
    paper = "2408.08274"
    params: BranchParameters

    def preflight(self) -> None:
        """The packages that training imports are there."""
        require_training_tools()

    def check(self, inputs: Mapping[str, Any]) -> None:
        """A dense seed, and windows of one length in its tokens."""
        check_source("model", inputs["model"])
        require_given_tokens(inputs["model"], inputs, ("data", "replay", "heldout"))
        if inputs.get("replay") is not None:
            check_one_length({name: inputs[name] for name in ("data", "replay")})

    def run(self, context: Context) -> None:
        """Train, save, measure and report."""
        from stages.training.launch import run_training
        from stages.upcycle.blend import Blended

        model, replay = context.model("model"), context.inputs.get("replay")
        recipe = Blended(
            model=model,
            data=context.dataset("data"),
            heldout=context.inputs.get("heldout"),
            heldout_windows=self.params.heldout_windows,
            measure_batch=self.params.micro_batch,
            parent=model,
            cache=context.scratch / "windows",
            out=context.output("model"),
            more=() if replay is None else (replay,),
            shares=(1.0,) if replay is None else (1 - self.params.replay_share, self.params.replay_share),
        )
        result = run_training(recipe, self.params, context)
        context.metrics(**result.figures, **result.cost)
        details = {"replayed": replay is not None, **result.details(self.params, context.seed)}
        write_report(context.output("report"), "Training of a branch", result.figures, details)
