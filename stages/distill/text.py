"""The text of a batch, some of it the student's own, and which of its tokens are targets."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from stages.distill.sampling import continue_windows
from stages.training.recipe import Batch


@dataclass(frozen=True)
class Text:
    """Token ids [B, T], and which of the T - 1 next tokens of each window count (None: all of them)."""

    ids: Tensor
    counts: Tensor | None

    @classmethod
    def of(cls, batch: Batch, model: nn.Module, num_kept: int) -> Text:
        """The windows of `batch`; those it says are sampled keep `num_kept` tokens, and `model` writes the others."""
        ids_BT, sampled_B = batch.tensors["ids_BT"], batch.tensors.get("sampled_B")
        if sampled_B is None:
            return cls(ids_BT, None)
        indices = batch.tensors["index_B"][sampled_B].tolist()
        ids_BT, counts_BT = ids_BT.clone(), torch.ones_like(ids_BT[:, 1:], dtype=torch.bool)
        ids_BT[sampled_B] = continue_windows(getattr(model, "module", model), ids_BT[sampled_B], num_kept, indices)
        counts_BT[sampled_B, : num_kept - 1] = False
        return cls(ids_BT, counts_BT)

    def counted(self, values_BT: Tensor) -> Tensor:
        """Of values [B, T - 1, …] those that count, [P, …]; without a copy when all do."""
        return values_BT.flatten(0, 1) if self.counts is None else values_BT[self.counts]

    def targets(self) -> Tensor:
        """The next tokens that count, [P]."""
        return self.counted(self.ids[:, 1:])
