"""Whether models can be experts of one mixture, found out from their files before any weight is read."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from typing import Any, Final

from stages.artifacts import Dataset, Model
from stages.errors import UserError
from stages.evaluate.matching import text_config
from stages.training.checks import num_experts

LONG_TEXT: Final = 80
"""Characters of a value beyond which a message shows only what differs."""
ALIKE: Final = (
    "model_type",
    "vocab_size",
    "tie_word_embeddings",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "hidden_act",
    "rms_norm_eps",
    "attention_bias",
    "mlp_bias",
)
"""Fields of a config that models must share to lend each other their parts, those that people can act on first."""


def check_source(role: str, model: Model) -> None:
    """The model is dense and holds its weights as they are. Raises UserError."""
    if num_experts(model) or any(graft["name"] == "experts" for graft in model.grafts):
        raise UserError(
            "the model is a mixture of experts already", where=role, fix="give the dense model that it was made of"
        )
    if "quantization_config" in model.config or any(graft["name"] == "quantised" for graft in model.grafts):
        raise UserError(
            "the model is quantised: there are no weights to copy or average", where=role, fix="upcycle first"
        )


def check_alike(models: Mapping[str, Model]) -> None:
    """The models, by role, are of one architecture, tokenizer and chat template. Raises UserError at the first
    difference, with both values.
    """
    (first, seed), *others = models.items()
    for role, model in others:
        for name, *values in _differences(seed, model):
            ours, theirs = _excerpts(*values)
            raise UserError(
                f"{first} has {name} {ours!r}, {role} has {theirs!r}",
                where=role,
                fix="experts come from models that began as one: branch them from the same seed",
            )


def check_one_length(data: Mapping[str, Dataset]) -> None:
    """The datasets, by role, have windows of one length, since they meet in one batch. Raises UserError."""
    (first, length), *others = ((role, each.card.sequence_length) for role, each in data.items())
    for role, found in others:
        if found != length:
            raise UserError(
                f"{first} has windows of {length} tokens, {role} of {found}: they meet in one batch",
                where=role,
                fix="prepare both with one `sequence_length`",
            )


def expert_names(models: Mapping[str, Model]) -> list[str]:
    """What people call the models: the arm of a matrix by its values, another stage by its name, else the role."""
    return [model.short_name or role for role, model in models.items()]


def _differences(seed: Model, model: Model) -> list[tuple[str, Any, Any]]:
    configs = [text_config(each.config) for each in (seed, model)]
    pairs = [(name, configs[0][name], configs[1][name]) for name in ALIKE if all(name in c for c in configs)]
    pairs.append(("grafts", [graft["name"] for graft in seed.grafts], [graft["name"] for graft in model.grafts]))
    pairs.append(("tokenizer", seed.tokenizer_fingerprint, model.tokenizer_fingerprint))
    pairs.append(("chat template", _chat_template(seed), _chat_template(model)))
    return [pair for pair in pairs if pair[1] != pair[2]]


def _excerpts(ours: Any, theirs: Any) -> tuple[Any, Any]:
    """The values; of long texts, what is around the first difference."""
    if not (isinstance(ours, str) and isinstance(theirs, str)) or max(len(ours), len(theirs)) <= LONG_TEXT:
        return ours, theirs
    pairs = enumerate(itertools.zip_longest(ours, theirs))
    start = max(0, next(place for place, pair in pairs if pair[0] != pair[1]) - LONG_TEXT // 2)
    return tuple(f"{'…' if start else ''}{text[start : start + LONG_TEXT]}" for text in (ours, theirs))


def _chat_template(model: Model) -> str | None:
    file, config = model.path / "chat_template.jinja", model.path / "tokenizer_config.json"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    return json.loads(config.read_text(encoding="utf-8")).get("chat_template") if config.is_file() else None
