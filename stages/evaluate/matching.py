"""Whether a model can be given a dataset of token ids: found out from their cards, before any weight is read."""

from __future__ import annotations

from typing import Any

from stages.artifacts import Dataset, Model
from stages.errors import UserError


def require_tokens_of(model: Model, data: Dataset, where: str = "") -> None:
    """Raise UserError unless `data` holds packed tokens of `model`'s own tokenizer, in windows that fit its context."""
    card = data.card
    if card.schema != "tokens" or card.sequence_length < 2:
        raise UserError(
            f"{data.path} holds {card.schema} with sequence_length {card.sequence_length}, expected packed tokens",
            where=where,
            fix="prepare the text with data.prepare first",
        )
    if card.num_rows == 0:
        raise UserError(f"{data.path} has no windows", where=where, fix="prepare more text, or shorter windows")
    if card.tokenizer and model.tokenizer_fingerprint and card.tokenizer != model.tokenizer_fingerprint:
        raise UserError(
            f"the tokens come from tokenizer {card.tokenizer}, the model has {model.tokenizer_fingerprint}",
            where=where,
            fix="prepare the text with this model as the `model` input of data.prepare",
        )
    context = text_config(model.config).get("max_position_embeddings")
    if context and card.sequence_length > context:
        raise UserError(
            f"windows of {card.sequence_length} tokens exceed the model's context of {context}",
            where=where,
            fix=f"prepare the data with sequence_length: {context} or less",
        )


def require_ids_below(largest_id: int, config: dict[str, Any], where: str = "") -> None:
    """Raise UserError unless `largest_id` is in the vocabulary that `config` declares."""
    vocabulary = text_config(config).get("vocab_size")
    if vocabulary is not None and largest_id >= vocabulary:
        raise UserError(
            f"the data holds token id {largest_id}, the model's vocabulary has {vocabulary}",
            where=where,
            fix="prepare the text with this model as the `model` input of data.prepare",
        )


def text_config(config: dict[str, Any]) -> dict[str, Any]:
    """The part of a `config.json` that describes the language model."""
    return config.get("text_config", config)
