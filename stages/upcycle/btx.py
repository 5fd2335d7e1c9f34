"""`upcycle.btx`: the feed-forward parts of several models become experts, everything else is averaged."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from stages.artifacts import Model
from stages.upcycle.conversion import ModelsParameters, Upcycle, models_inputs, named, num_experts

if TYPE_CHECKING:
    from grafts.experts.graft import Experts


class BtxParameters(ModelsParameters):
    """Which models give experts, and where the rest comes from."""

    others: Literal["mean", "seed"] = "mean"
    """Attention, norms and embeddings: the mean of the models that give experts, or the seed's, as `mergekit-moe` has
    it."""


class UpcycleBtx(Upcycle):
    """Put the feed-forward parts of models branched from one seed side by side (Branch-Train-MiX, arXiv 2403.07816).

    Experts keep their weights bit for bit; attention, norms and embeddings are averaged. The routers are random: the
    mixture has to be trained with `upcycle.mix`. It is saved as Mixtral or Qwen3-MoE where it is one.
    """

    Params = BtxParameters
    inputs = models_inputs()
    paper = "2403.07816"
    params: BtxParameters

    def models(self, inputs: Mapping[str, Any]) -> dict[str, Model]:
        """The seed and the experts."""
        return named(inputs)

    def graft(self, num_models: int, seed: int) -> Experts:
        """Feed-forward experts, one of each model."""
        from grafts.experts.graft import Experts
        from grafts.experts.settings import Making

        params = self.params
        making = Making(
            first_is_expert=params.seed_is_expert,
            others="mean" if params.others == "mean" else "first",
            router_std=params.router_std,
            seed=seed,
        )
        return Experts(
            num_experts=num_experts(num_models, params),
            top_k=params.top_k,
            renormalise=params.renormalise,
            split=params.split,
            capacity=params.capacity,
            making=making,
        )
