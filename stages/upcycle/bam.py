"""`upcycle.bam`: feed-forward parts and attention of several models become experts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from stages.upcycle.conversion import ModelsParameters, UpcycleModels

if TYPE_CHECKING:
    from grafts.experts.settings import Making


class BamParameters(ModelsParameters):
    """Which models give experts, and how their attention is shared out."""

    attention: Literal["kv-expert", "kv-shared"] = "kv-expert"
    """Attention experts with keys and values of their own, and as many caches; or with the models' mean of them."""
    block: Literal["serial", "parallel"] = "serial"
    """Attention, then experts, as Llama-like models have it; or both on the same input, as the paper's seed has it."""


class UpcycleBam(UpcycleModels):
    """Put feed-forward parts and attention of models branched from one seed side by side (BAM, arXiv 2408.08274).

    Every attention expert reads every token and a router weighs what they say; feed-forward experts are chosen, `top_k`
    a token. Embeddings and norms are averaged. Two deviations from the paper, both switches: blocks stay serial, since
    the supported models are, and the gates of two experts sum to 1, where the paper takes one expert by its raw gate.
    """

    Params = BamParameters
    paper = "2408.08274"
    params: BamParameters

    def making(self, seed: int) -> Making:
        """Experts of both kinds, one of each model."""
        from grafts.experts.settings import Making

        return Making(first_is_expert=self.params.seed_is_expert, router_std=self.params.router_std, seed=seed)

    def structure(self) -> dict[str, Any]:
        """With experts of attention."""
        return {**super().structure(), "attention": self.params.attention, "block": self.params.block}
