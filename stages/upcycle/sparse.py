"""`upcycle.sparse`: every feed-forward part becomes several copies of itself behind a router."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from stages.upcycle.conversion import CopiesParameters, UpcycleCopies

if TYPE_CHECKING:
    from grafts.experts.settings import Making


class SparseParameters(CopiesParameters):
    """How many copies, and how far apart they start."""

    noise: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Standard deviation of Gaussian noise on each copy, as a share of the matrix's own; 0 keeps the function."""


class UpcycleSparse(UpcycleCopies):
    """Copy each feed-forward part of a dense model into experts behind a random router (arXiv 2212.05055).

    Without noise and with renormalised gates the mixture computes exactly what the model does, whatever the router
    says, and the stage fails when it does not. It is saved as Mixtral or Qwen3-MoE where it is one.
    """

    Params = SparseParameters
    paper = "2212.05055"
    params: SparseParameters

    def making(self, seed: int) -> Making:
        """Copies with noise."""
        from grafts.experts.settings import Making

        return Making(noise=self.params.noise, router_std=self.params.router_std, seed=seed)
