"""How the tensors of a mixture are made of its sources'. Kept in the model's config: it is its lineage."""

from __future__ import annotations

from typing import Annotated, Literal

from annotated_types import Ge, Interval
from pydantic import BaseModel, ConfigDict


class Making(BaseModel):
    """What was done to the sources' weights; all defaults together keep every one of them as it was."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    first_is_expert: bool = True
    """Whether the first source, the seed, gives an expert too; off, only those after it do."""
    others: Literal["mean", "first"] = "mean"
    """Where tensors come from that are no experts (embeddings, norms, plain attention): the mean of the models that
    give experts (arXiv 2403.07816), or the first source alone."""
    noise: Annotated[float, Interval(ge=0, le=1)] = 0.0
    """Standard deviation of Gaussian noise on each expert's matrices, as a share of the matrix's own."""
    drop: Annotated[float, Interval(ge=0, le=1)] = 0.0
    """Share of each expert's feed-forward units that start anew (arXiv 2502.19261)."""
    router_std: Annotated[float, Ge(0)] = 0.02
    """Standard deviation of the routers' weights; 0 routes every token alike at first."""
    seed: Annotated[int, Ge(0)] = 0
    """Of everything drawn at random."""
