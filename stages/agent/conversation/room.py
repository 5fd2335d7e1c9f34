"""What a model needs to hold a conversation: a tokenizer, and a context that is long enough. Imported to plan."""

from __future__ import annotations

from stages.artifacts import Model
from stages.errors import UserError
from stages.evaluate.matching import text_config


def require_room(model: Model, window: int) -> None:
    """Raise UserError for a model without a fast tokenizer, or with a context of fewer than `window` tokens."""
    require_tokenizer(model)
    context = text_config(model.config).get("max_position_embeddings")
    if context and window > context:
        raise UserError(
            f"window: {window} exceeds the model's context of {context} tokens",
            fix=f"set window to {context} or less",
        )


def require_tokenizer(model: Model | None, where: str = "model") -> None:
    """Raise UserError for the model of input `where`, if it is given, without a fast tokenizer."""
    if model is not None and not model.tokenizer_fingerprint:
        raise UserError(
            f"the model in {model.path} has no tokenizer.json", where=where, fix="give a model with a fast tokenizer"
        )
