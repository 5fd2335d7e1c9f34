"""Whether a model can be given a dataset of token ids: found out from their cards, before any weight is read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from stages.artifacts import Dataset, Model
from stages.errors import UserError

LONGEST_WINDOW: Final = 2048
"""Tokens of a window when nobody says: the length that published perplexities use."""


def require_text_or_tokens(model: Model, data: Dataset, window: int | None, where: str) -> None:
    """Raise UserError unless `model` can be measured on `data`: packed tokens of its own, or text it can tokenise.

    `window` is the length asked for; packed tokens bring their own.
    """
    card = data.card
    if card.schema == "text":
        _require_text(model, data, window, where)
        return
    require_tokens_of(model, data, where)
    if window is not None and window != card.sequence_length:
        raise UserError(
            f"window: {window}, but the data is packed in windows of {card.sequence_length} tokens",
            where=where,
            fix="leave window out, or give the text itself instead of packed tokens",
        )


def window_length(config: dict[str, Any], window: int | None) -> int:
    """`window`, or without one the context that `config` declares, capped at `LONGEST_WINDOW`."""
    context = text_config(config).get("max_position_embeddings") or LONGEST_WINDOW
    return window or min(int(context), LONGEST_WINDOW)


def require_one_vocabulary(first: Model, second: Model, roles: tuple[str, str] = ("parent", "child")) -> None:
    """Raise UserError unless both models, which `roles` name, predict the same tokens: one vocabulary, one tokenizer.

    What a config or a directory does not tell is left to the logits.
    """
    one, other = roles
    family = f"take a {other} of the {one}'s family: only then can they be compared token by token"
    sizes = [text_config(model.config).get("vocab_size") for model in (first, second)]
    if None not in sizes and sizes[0] != sizes[1]:
        raise UserError(
            f"the {one} has {sizes[0]} tokens in its vocabulary, the {other} {sizes[1]}", where=other, fix=family
        )
    prints = [model.tokenizer_fingerprint for model in (first, second)]
    if all(prints) and prints[0] != prints[1]:
        raise UserError(
            f"the {one}'s tokenizer is {prints[0]}, the {other}'s {prints[1]}: equal ids mean different text",
            where=other,
            fix=f"{family}; bits_per_byte of evaluate.perplexity compares across tokenizers",
        )


def require_tokens_of(
    model: Model, data: Dataset, where: str, role: str = "model", *, any_length: bool = False
) -> None:
    """Raise UserError unless `data`, the input `where`, holds packed tokens of the tokenizer of `model`, the `role`.

    Tokens of an unknown tokenizer are refused where the model has one, and so are windows that its context does not
    hold, unless they may be of `any_length`.
    """
    card = data.card
    if card.schema != "tokens" or card.sequence_length < 2:
        raise UserError(
            f"{data.path} holds {card.schema} with sequence_length {card.sequence_length}, expected packed tokens",
            where=where,
            fix="prepare the text with data.prepare first",
        )
    if card.num_rows == 0:
        raise UserError(f"{data.path} has no windows", where=where, fix="prepare more text, or shorter windows")
    expected = model.tokenizer_fingerprint
    if expected and card.tokenizer != expected:
        raise UserError(
            f"the tokens come from tokenizer {card.tokenizer or '(unknown)'}, the {role} has {expected}",
            where=where,
            fix=f"prepare the text with the {role} as the `model` input of data.prepare",
        )
    context = context_of(model)
    if context and card.sequence_length > context and not any_length:
        raise UserError(
            f"windows of {card.sequence_length} tokens exceed the {role}'s context of {context}",
            where=where,
            fix=f"prepare the data with sequence_length: {context} or less",
        )


def require_given_tokens(
    model: Model, inputs: Mapping[str, Any], names: Sequence[str] = ("data", "heldout"), role: str = "model"
) -> None:
    """`require_tokens_of` for each of the inputs `names` that is given."""
    for name in names:
        if inputs.get(name) is not None:
            require_tokens_of(model, inputs[name], name, role)


def require_room(model: Model, tokens: int, parameter: str = "window", where: str = "model") -> None:
    """Raise UserError for a model without a fast tokenizer, or whose context does not hold `parameter`, in tokens."""
    require_tokenizer(model, where)
    require_context(model, tokens, parameter, where)


def require_tokenizer(model: Model | None, where: str = "model") -> None:
    """Raise UserError for the model of input `where`, if it is given, without a fast tokenizer."""
    if model is not None and not model.tokenizer_fingerprint:
        raise UserError(
            f"the model in {model.path} has no tokenizer.json",
            where=where,
            fix="give a fast tokenizer: `AutoTokenizer.from_pretrained(…).save_pretrained(…)` makes it",
        )


def require_context(model: Model, tokens: int, parameter: str, where: str) -> None:
    """Raise UserError when the context of the model of input `where` does not hold the tokens of `parameter`."""
    context = context_of(model)
    if context and tokens > context:
        raise UserError(
            f"{parameter}: {tokens} exceeds the model's context of {context} tokens",
            where=where,
            fix=f"set {parameter} to {context} or less",
        )


def context_of(model: Model) -> int | None:
    """Tokens that the model's config says it reads at once."""
    return text_config(model.config).get("max_position_embeddings")


def _require_text(model: Model, data: Dataset, window: int | None, where: str) -> None:
    if data.card.num_rows == 0:
        raise UserError(f"{data.path} has no documents", where=where, fix="give a text dataset with documents in it")
    require_room(model, window or 0)


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
    """The part of a `config.json` that describes the language model: below the grafts, beside other modalities."""
    base = config.get("base", config)
    return base.get("text_config", base)


def first_difference(one: Model, other: Model, names: Iterable[str]) -> tuple[str, Any, Any] | None:
    """The first of these fields that two models' configs have otherwise, with both values; None when all agree."""
    ours, theirs = text_config(one.config), text_config(other.config)
    for name in names:
        if ours.get(name) != theirs.get(name):
            return name, ours.get(name), theirs.get(name)
    return None
