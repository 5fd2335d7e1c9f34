"""`upcycle.btx`: the feed-forward parts of several models become experts, everything else is averaged."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from stages.upcycle.conversion import ModelsParameters, UpcycleModels

if TYPE_CHECKING:
    from grafts.experts.settings import Making


class BtxParameters(ModelsParameters):
    """Which models give experts, and where the rest comes from."""

    others: Literal["mean", "seed"] = "mean"
    """Attention, norms and embeddings: the mean of the models that give experts, or the seed's, as `mergekit-moe` has
    it."""


class UpcycleBtx(UpcycleModels):
    """Put the feed-forward parts of models branched from one seed side by side (Branch-Train-MiX, arXiv 2403.07816).

    Experts keep their weights bit for bit; attention, norms and embeddings are averaged. The routers are random: the
    mixture has to be trained with `upcycle.mix`. It is saved as Mixtral or Qwen3-MoE where it is one.
    """

    Params = BtxParameters
    paper = "2403.07816"
    params: BtxParameters

    def making(self, seed: int) -> Making:
        """Feed-forward experts, one of each model."""
        from grafts.experts.settings import Making

        params = self.params
        others = "mean" if params.others == "mean" else "first"
        return Making(first_is_expert=params.seed_is_expert, others=others, router_std=params.router_std, seed=seed)
