"""What recipes on packed windows have in common: a window is a sample, and every token but its first a target."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from stages.artifacts import Dataset
from stages.data.windows import TokenWindows, keeps_documents_apart
from stages.errors import UserError
from stages.training.recipe import Batch, Recipe

if TYPE_CHECKING:
    from stages.stage import Context


class WindowRecipe(Recipe):
    """A recipe whose samples are the windows of a packed dataset."""

    @property
    @abstractmethod
    def windows(self) -> TokenWindows:
        """The training data, once `prepare` has mapped it."""

    @property
    def num_samples(self) -> int:
        """Windows of the training data."""
        return len(self.windows)

    @property
    def sample_tokens(self) -> int:
        """Tokens of a window."""
        return self.windows.sequence_length

    def batch(self, indices: Sequence[int]) -> Batch:
        """Windows [B, T] of token ids."""
        return self.whole(self.windows.stack(indices))

    def whole(self, ids_BT: Tensor) -> Batch:
        """Any windows [B, T] of token ids, whose documents may see each other."""
        return Batch({"ids_BT": ids_BT}, num_targets=ids_BT.shape[0] * (ids_BT.shape[1] - 1))

    @torch.no_grad()
    def mean_losses(self, model: nn.Module, windows_NT: Tensor, batch_size: int) -> dict[str, float]:
        """The loss of `model` on `windows_NT` and its parts, by name, means over target tokens as in training."""
        sums: dict[str, float] = {}
        batches = [self.whole(ids_BT) for ids_BT in windows_NT.split(batch_size)]
        for batch in batches:
            loss = self.loss(model, batch.to(next(model.parameters()).device))
            for name, value in {"loss": loss.total, **loss.parts}.items():
                sums[name] = sums.get(name, 0.0) + float(value)
        num_targets = sum(batch.num_targets for batch in batches)
        return {name: total / num_targets for name, total in sums.items()}


def first_windows(data: Dataset, cache: Path, limit: int, role: str = "heldout") -> Tensor:
    """The first `limit` windows [N, T] of token ids of the input `role`, which models are measured on whole.

    Raises UserError as `TokenWindows` does, and for data whose documents are not to see each other.
    """
    if keeps_documents_apart(data):
        raise UserError(
            f"the documents in the windows of {data.path} are not to see each other (attention: document), and models "
            "are measured on whole windows",
            where=role,
            fix=f"prepare {role} with `attention: window`",
        )
    return TokenWindows(data, cache).tensor(limit)


def input_windows(context: Context, name: str, limit: int) -> Tensor:
    """`first_windows` of the input `name` of a stage."""
    return first_windows(context.dataset(name), context.scratch / "windows", limit, name)
