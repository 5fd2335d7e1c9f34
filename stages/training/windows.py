"""What recipes on packed windows have in common: a window is a sample, and every token but its first a target."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

from stages.data.windows import TokenWindows
from stages.training.recipe import Batch, Recipe


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
        ids_BT = self.windows.stack(indices)
        return Batch({"ids_BT": ids_BT}, num_targets=ids_BT.shape[0] * (ids_BT.shape[1] - 1))
