"""Leaving a model early: the logits that its head makes of the hidden states between two layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel


def exit_logits(model: PreTrainedModel, hidden_BTH: Tensor) -> Tensor:
    """Logits [B, T, V] as the model would give them if the layer that made `hidden_BTH` were its last."""
    logits_BTV = model.lm_head(model.model.norm(hidden_BTH))
    cap = getattr(model.config, "final_logit_softcapping", None)
    return logits_BTV if cap is None else torch.tanh(logits_BTV / cap) * cap


def exits(model: PreTrainedModel, output: Any, ends: Sequence[int]) -> list[Tensor]:
    """Logits [B, T, V] after each of `ends` layers, of an output with all hidden states; the last are the output's."""
    states = output.hidden_states
    return [exit_logits(model, states[end]) for end in ends[:-1]] + [output.logits]
