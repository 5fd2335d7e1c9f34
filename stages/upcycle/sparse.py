"""`upcycle.sparse`: every feed-forward part becomes several copies of itself behind a router."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from stages.artifacts import Model
from stages.upcycle.conversion import CopiesParameters, Upcycle, seed_inputs

if TYPE_CHECKING:
    from grafts.experts.graft import Experts


class SparseParameters(CopiesParameters):
    """How many copies, and how far apart they start."""

    noise: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Standard deviation of Gaussian noise on each copy, as a share of the matrix's own; 0 keeps the function."""


class UpcycleSparse(Upcycle):
    """Copy each feed-forward part of a dense model into experts behind a random router (arXiv 2212.05055).

    Without noise and with renormalised gates the mixture computes exactly what the model does, whatever the router
    says, and the stage fails when it does not. It is saved as Mixtral or Qwen3-MoE where it is one.
    """

    Params = SparseParameters
    inputs = seed_inputs()
    paper = "2212.05055"
    params: SparseParameters

    def models(self, inputs: Mapping[str, Any]) -> dict[str, Model]:
        """The one model."""
        return {"model": inputs["model"]}

    def graft(self, num_models: int, seed: int) -> Experts:  # noqa: ARG002
        """Copies with noise."""
        from grafts.experts.graft import Experts
        from grafts.experts.settings import Making

        params = self.params
        return Experts(
            num_experts=params.num_experts,
            top_k=params.top_k,
            renormalise=params.renormalise,
            split=params.split,
            capacity=params.capacity,
            making=Making(noise=params.noise, router_std=params.router_std, seed=seed),
        )
