"""`transfer.distill`: stage 2 of hybrid transfer, all weights of the converted model learn the teacher's logits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import Field

from stages.artifacts import Dataset, Model
from stages.distill.logits import DistillLogits, DistillParameters
from stages.stage import Input
from stages.transfer.hybrid import check_pair


class TransferDistillParams(DistillParameters):
    """How to distil. The defaults are HALO's (arXiv 2601.22156), a budget of tokens aside."""

    learning_rate: Annotated[float, Field(gt=0, le=1)] = 1e-4
    """Peak learning rate of AdamW; the recipe takes 3e-5 for a model of nine billion parameters."""


class TransferDistill(DistillLogits):
    """Train all weights of a converted student on the KL to its teacher's next-token distributions.

    Stage 2 of HydraHead's transfer (arXiv 2606.20097): windows of 512 tokens, a billion of them in the paper. It is
    `distill.logits` with the student given and the recipe's learning rate.
    """

    Params = TransferDistillParams
    inputs: ClassVar[Mapping[str, Input]] = {
        "teacher": Input(Model),
        "student": Input(Model),
        "data": Input(Dataset, schema="tokens"),
        "heldout": Input(Dataset, schema="tokens", optional=True),
    }
    paper = "2606.20097"
    params: TransferDistillParams

    def check(self, inputs: Mapping[str, Any]) -> None:
        """As `distill.logits`, and the student is the teacher with hybrid heads."""
        check_pair(inputs["teacher"], inputs["student"])
        super().check(inputs)
