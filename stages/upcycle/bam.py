"""`upcycle.bam`: feed-forward parts and attention of several models become experts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from stages.artifacts import Model
from stages.upcycle.conversion import ModelsParameters, Upcycle, models_inputs, named, num_experts

if TYPE_CHECKING:
    from grafts.experts.graft import Experts


class BamParameters(ModelsParameters):
    """Which models give experts, and how their attention is shared out."""

    attention: Literal["kv-expert", "kv-shared"] = "kv-expert"
    """Attention experts with keys and values of their own, and as many caches; or with the models' mean of them."""
    block: Literal["serial", "parallel"] = "serial"
    """Attention, then experts, as Llama-like models have it; or both on the same input, as the paper's seed has it."""


class UpcycleBam(Upcycle):
    """Put feed-forward parts and attention of models branched from one seed side by side (BAM, arXiv 2408.08274).

    Every attention expert reads every token and a router weighs what they say; feed-forward experts are chosen, `top_k`
    a token. Embeddings and norms are averaged. Two deviations from the paper, both switches: blocks stay serial, since
    the supported models are, and the gates of two experts sum to 1, where the paper takes one expert by its raw gate.
    """

    Params = BamParameters
    inputs = models_inputs()
    paper = "2408.08274"
    params: BamParameters

    def models(self, inputs: Mapping[str, Any]) -> dict[str, Model]:
        """The seed and the experts."""
        return named(inputs)

    def graft(self, num_models: int, seed: int) -> Experts:
        """Experts of both kinds, one of each model."""
        from grafts.experts.graft import Experts
        from grafts.experts.settings import Making

        params = self.params
        return Experts(
            num_experts=num_experts(num_models, params),
            top_k=params.top_k,
            renormalise=params.renormalise,
            split=params.split,
            capacity=params.capacity,
            attention=params.attention,
            block=params.block,
            making=Making(first_is_expert=params.seed_is_expert, router_std=params.router_std, seed=seed),
        )
