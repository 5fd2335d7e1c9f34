"""`upcycle.drop`: Drop-Upcycling, copies that each start anew in part."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from stages.artifacts import Model
from stages.upcycle.conversion import CopiesParameters, Upcycle, seed_inputs

if TYPE_CHECKING:
    from grafts.experts.graft import Experts


class DropParameters(CopiesParameters):
    """How many copies, and how much of each starts anew."""

    ratio: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Share of the feed-forward units of each expert that start anew: other units in each; 0 is `upcycle.sparse`."""


class UpcycleDrop(Upcycle):
    """Copy each feed-forward part into experts, and draw some units of each anew (Drop-Upcycling, arXiv 2502.19261).

    A unit's gate, up and down weights start anew together, from normals with the mean and deviation of what they
    replace, so that experts differ from the start. The distance to the model says what that cost.
    """

    Params = DropParameters
    inputs = seed_inputs()
    paper = "2502.19261"
    params: DropParameters

    def models(self, inputs: Mapping[str, Any]) -> dict[str, Model]:
        """The one model."""
        return {"model": inputs["model"]}

    def graft(self, num_models: int, seed: int) -> Experts:  # noqa: ARG002
        """Copies with units anew."""
        from grafts.experts.graft import Experts
        from grafts.experts.settings import Making

        params = self.params
        return Experts(
            num_experts=params.num_experts,
            top_k=params.top_k,
            renormalise=params.renormalise,
            split=params.split,
            capacity=params.capacity,
            making=Making(drop=params.ratio, router_std=params.router_std, seed=seed),
        )
