"""The architectures of `transformers` that grafts are tested on, and how to find their parts."""

from __future__ import annotations

from typing import Any, Final

import transformers
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

BASES: Final[dict[str, str]] = {
    "gemma3_text": "Gemma3ForCausalLM",
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
"""Model type → class. SmolLM and SmolLM2 are `llama`."""


def base_class(model_type: str) -> type[PreTrainedModel]:
    """The class that grafts for `model_type` are put on; ValueError listing the supported ones when there is none."""
    if model_type not in BASES:
        raise ValueError(f"no grafts for the model type '{model_type}': supported are {', '.join(sorted(BASES))}")
    return getattr(transformers, BASES[model_type])


def base_config(fields: dict[str, Any]) -> PretrainedConfig:
    """The config of a base model from its `to_dict`; ValueError when its model type is not supported."""
    values = dict(fields)
    return base_class(str(values.pop("model_type", ""))).config_class(**values)


def decoder_layers(model: PreTrainedModel) -> nn.ModuleList:
    """The decoder layers of a supported model, first to last."""
    return model.get_submodule("model").layers
