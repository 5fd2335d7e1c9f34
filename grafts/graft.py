"""What a graft is: a frozen value that says how a pretrained model's structure changes, and can make that change twice.

`convert` makes it on a model with weights and reuses them; `build` makes the same modules without weights, for a
checkpoint to fill. A graft lives in the model's `config.json`, so its fields are plain JSON values.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

Place = Literal["attention", "feed_forward", "depth", "linears", "adapters"]
"""The part of a model that a graft changes; `grafts.order` says what may follow what."""


@dataclass(frozen=True)
class Sources:
    """What a conversion may look at beside the model it converts."""

    calibration: Sequence[Tensor] = ()
    """Batches of token ids [B, T] of ordinary text, to measure activations on."""
    models: Sequence[PreTrainedModel] = ()
    """Further pretrained models of the same base, for grafts that combine several."""
    seed: int = 0
    """Of what is drawn at random."""


class Graft(BaseModel, ABC):
    """One replayable change to a model's structure. Subclasses add their fields and stand in `grafts.registry`."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    name: ClassVar[str]
    """What the registry and `config.json` call it."""
    place: ClassVar[Place]
    revision: ClassVar[int] = 1
    """Raised when the same fields come to mean another function, so that old directories are not misread."""

    @abstractmethod
    def check(self, base: PretrainedConfig, earlier: Sequence[Graft]) -> None:
        """Raise ValueError, with the reason, unless this graft fits `base` after the grafts `earlier`."""

    @abstractmethod
    def build(self, model: PreTrainedModel) -> None:
        """Change the structure of `model` in place, on its device (also `meta`), without meaningful weights."""

    @abstractmethod
    def convert(self, model: PreTrainedModel, sources: Sources) -> None:
        """Change the structure of `model` in place to what `build` makes, reusing its weights."""

    @abstractmethod
    def identity(self, base: PretrainedConfig) -> Self:
        """This graft with every switch where the converted model computes exactly what the model before it did."""

    def to_dict(self) -> dict[str, Any]:
        """What `config.json` holds: name, revision and all fields, as JSON values."""
        return {"name": self.name, "revision": self.revision, **self.model_dump(mode="json")}
