"""`upcycle.drop`: Drop-Upcycling, copies that each start anew in part."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from stages.upcycle.conversion import CopiesParameters, UpcycleCopies

if TYPE_CHECKING:
    from grafts.experts.settings import Making


class DropParameters(CopiesParameters):
    """How many copies, and how much of each starts anew."""

    ratio: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Share of the feed-forward units of each expert that start anew: other units in each; 0 is `upcycle.sparse`."""


class UpcycleDrop(UpcycleCopies):
    """Copy each feed-forward part into experts, and draw some units of each anew (Drop-Upcycling, arXiv 2502.19261).

    A unit's gate, up and down weights start anew together, from normals with the mean and deviation of what they
    replace, so that experts differ from the start. The distance to the model says what that cost.
    """

    Params = DropParameters
    paper = "2502.19261"
    params: DropParameters

    def making(self, seed: int) -> Making:
        """Copies with units anew."""
        from grafts.experts.settings import Making

        return Making(drop=self.params.ratio, router_std=self.params.router_std, seed=seed)
