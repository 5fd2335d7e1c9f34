"""Whether a mixture of equal experts computes what its seed computes: tried on the models themselves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor
from transformers import PreTrainedModel

from grafts.arithmetic import computing_dtype
from grafts.loader import stored_dtype
from stages.artifacts import Model
from stages.errors import StageError
from stages.evaluate.loading import DEVICE, load_for_evaluation
from stages.evaluate.matching import text_config

ROUNDING: Final = 1e-4
"""Largest difference of float32 logits, as a share of the largest logit, that still counts as exact."""
PROBE_TOKENS: Final = 64
"""Tokens on which exactness is tried where there is no held-out text."""


@dataclass(frozen=True)
class Pair:
    """The seed and the mixture made of it."""

    parent: PreTrainedModel
    child: PreTrainedModel

    @classmethod
    def load(cls, seed: Model, mixture: Model, *, in_float32: bool) -> Pair:
        """Both, in float32 or, if this machine computes in it, in the type that the seed is stored in."""
        dtype = torch.float32 if in_float32 else computing_dtype(stored_dtype(seed.path), DEVICE.type)
        return cls(*(load_for_evaluation(model, dtype) for model in (seed, mixture)))

    def require_equal(self, ids_BT: Tensor) -> float:
        """The largest difference of their logits on `ids_BT`. Raises StageError when it is more than rounding."""
        ids_BT = ids_BT.to(self.parent.device)
        with torch.no_grad():
            parent, child = (model(input_ids=ids_BT, use_cache=False).logits for model in (self.parent, self.child))
        difference, size = (child - parent).abs().max().item(), parent.abs().max().item()
        if not difference <= ROUNDING * size:
            raise StageError(
                f"equal experts must compute what the seed computes, their logits differ by {difference:.3g} "
                f"(the largest logit is {size:.3g})",
                fix="this is a fault of regraft, not of the pipeline: report it with the seed's config.json",
            )
        return difference


def probe(seed: Model) -> Tensor:
    """Token ids [1, T] to try exactness on where there is no text."""
    vocabulary = int(text_config(seed.config)["vocab_size"])
    return torch.randint(vocabulary, (1, PROBE_TOKENS), generator=torch.Generator().manual_seed(0))
