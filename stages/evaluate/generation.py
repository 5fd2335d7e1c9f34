"""Letting a model write, by what the caller asks for and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel


@torch.no_grad()
def written(
    model: PreTrainedModel, ids_BT: Tensor, max_new_tokens: int, end: int | Sequence[int] | None, **how: Any
) -> Tensor:
    """The prompts `ids_BT` and what `model` writes after them, up to `end`, sampled or not as `how` says.

    `transformers` takes what is left open from the model's own generation_config.json, such as a penalty on
    repetition: the text would not be drawn from the model's distribution. So that is set aside meanwhile.
    """
    ends = [end] if isinstance(end, int) else list(end or ())
    asked = GenerationConfig(
        max_new_tokens=max_new_tokens, eos_token_id=ends or None, pad_token_id=ends[0] if ends else None, **how
    )
    own, model.generation_config = model.generation_config, GenerationConfig()
    try:
        found = model.generate(ids_BT, attention_mask=torch.ones_like(ids_BT), generation_config=asked)
    finally:
        model.generation_config = own
    assert isinstance(found, Tensor)
    return found
