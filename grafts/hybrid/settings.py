"""The switches of a hybrid layer, with the values of the paper (arXiv 2606.20097) as defaults."""

from __future__ import annotations

from typing import Annotated, Self

from annotated_types import Gt, Interval
from pydantic import BaseModel, ConfigDict, model_validator

Rate = Annotated[float, Gt(0)]


class Settings(BaseModel):
    """Frozen, and closed to unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Softmax(Settings):
    """The softmax heads of a hybrid layer."""

    rope: bool = False
    """Rotate queries and keys by their position, as the teacher does; off, the linear heads alone know the order."""
    length_scale: Annotated[float, Gt(1)] | None = 362.0
    """a of the factor log(t + a) / log a on the query at position t (tokens); null: no factor. 362 is HALO's
    (arXiv 2601.22156)."""
    output_gate: bool = True
    """Multiply each output channel by the sigmoid of a projection of the layer's input; starts open."""

    @classmethod
    def teacher(cls) -> Self:
        """As in the model before conversion."""
        return cls(rope=True, length_scale=None, output_gate=False)


class DeltaNet(Settings):
    """The linear heads of a hybrid layer: Gated DeltaNet (arXiv 2412.06464)."""

    rope: bool = True
    """Rotate queries and keys by their position, after their norm and before they get length 1."""
    conv: Annotated[int, Interval(ge=2, le=16)] | None = 4
    """Tokens that a short causal convolution over queries, keys and values spans; it starts as the identity."""
    negative_eigenvalues: bool = False
    """Let the writing strength β reach 2, so that writing can flip what was there (arXiv 2411.12537)."""
    output_norm: bool = False
    """Normalise the outputs inside the branch too, with a learnable weight: for a layer without fusion norm."""
    output_gate: bool = False
    """As for the softmax heads."""
    forgetting: tuple[Rate, Rate] = (1e-3, 1e-1)
    """Decay of the state for each token at the start, −log, from the first linear head of a layer to the last,
    spaced evenly in the logarithm: 1e-3 halves a memory in 693 tokens, 1e-1 in 7."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.forgetting[0] > self.forgetting[1]:
            raise ValueError(f"forgetting must go from slow to fast, found {self.forgetting}")
        return self
