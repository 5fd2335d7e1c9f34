"""Checks of a training stage's inputs against each other, before any compute. Imports nothing heavy."""

from __future__ import annotations

from typing import Final

from stages.artifacts import Model
from stages.errors import UserError
from stages.evaluate.matching import text_config

SUPPORTED: Final = ("gemma3_text", "llama", "mistral", "qwen2", "qwen3")
"""Model types whose layers, heads and channels are known by name: `grafts.bases.BASES`, without importing torch."""
EXPERTS: Final = ("num_local_experts", "num_experts", "n_routed_experts")
"""Fields by which configs of `transformers` tell the number of experts."""


def check_plain(role: str, model: Model, reason: str, fix: str) -> None:
    """The model, the `role`, is of a standard class and holds its weights as they are. Raises UserError with `reason`
    for what cannot be done else.
    """
    if not model.grafts and "quantization_config" not in model.config:
        return
    names = ", ".join(graft["name"] for graft in model.grafts)
    what = f"has grafts ({names})" if names else "is quantised"
    raise UserError(f"the {role} {what}: {reason}", fix=fix)


def check_supported(model: Model, parts: str, fix: str) -> None:
    """The model's type is one whose `parts` are known. Raises UserError else."""
    kind = model.config.get("model_type")
    if kind not in SUPPORTED:
        raise UserError(f"the {parts} of a {kind} are not known: supported are {', '.join(SUPPORTED)}", fix=fix)


def num_experts(model: Model) -> int:
    """Feed-forward experts in a layer of a model of a standard class; 0 when it is dense."""
    config = text_config(model.config)
    return next((config[key] for key in EXPERTS if config.get(key)), 0)
