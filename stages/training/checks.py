"""Checks of a training stage's inputs against each other, before any compute. Imports nothing heavy."""

from __future__ import annotations

from typing import Final

from stages.artifacts import Dataset, Model
from stages.errors import UserError
from stages.evaluate.matching import text_config

SUPPORTED: Final = ("gemma3_text", "llama", "mistral", "qwen2", "qwen3")
"""Model types whose layers, heads and channels are known by name: `grafts.bases.BASES`, without importing torch."""
EXPERTS: Final = ("num_local_experts", "num_experts", "n_routed_experts")
"""Fields by which configs of `transformers` tell the number of experts."""


def check_data(role: str, model: Model, name: str, data: Dataset) -> None:
    """The windows of input `name` are ids of the tokenizer of `model`, the `role`, and fit its context."""
    if data.card.sequence_length < 2:
        raise UserError(
            f"{name} has windows of {data.card.sequence_length} tokens, training needs at least 2",
            fix="pack the data into windows of one length with `data.prepare`",
        )
    expected, found = model.tokenizer_fingerprint, data.card.tokenizer
    if expected and found != expected:
        raise UserError(
            f"{name} was made by tokenizer {found or '(unknown)'}, the {role} has tokenizer {expected}",
            fix=f"prepare {name} with the tokenizer of the {role}: give that model to its `data.prepare`",
        )
    context_length = text_config(model.config).get("max_position_embeddings")
    if context_length is not None and data.card.sequence_length > context_length:
        raise UserError(
            f"{name} has windows of {data.card.sequence_length} tokens, the {role} reads at most {context_length}",
            fix=f"prepare {name} with `sequence_length: {context_length}` or less",
        )


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


def check_one_vocabulary(teacher: Model, student: Model) -> None:
    """Teacher and student predict the same tokens."""
    sizes = [text_config(model.config).get("vocab_size") for model in (teacher, student)]
    if sizes[0] != sizes[1]:
        raise UserError(
            f"the teacher has a vocabulary of {sizes[0]} tokens, the student of {sizes[1]}",
            fix="logits can be compared over one vocabulary only: take a student of the teacher's family",
        )
    prints = [model.tokenizer_fingerprint for model in (teacher, student)]
    if all(prints) and prints[0] != prints[1]:
        raise UserError(
            f"the teacher has tokenizer {prints[0]}, the student {prints[1]}",
            fix="logits can be compared under one tokenizer only: take a student of the teacher's family",
        )
