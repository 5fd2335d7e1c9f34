"""How many heads a model has, read from its `config.json`: enough to plan a hybrid, before any weight is read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from stages.artifacts import Model
from stages.errors import UserError
from stages.training.checks import SUPPORTED


@dataclass(frozen=True)
class HeadShape:
    """The attention heads of a model; every layer has the same."""

    num_layers: int
    num_heads: int
    """Query heads of a layer."""
    num_groups: int
    """Key-value heads of a layer, each shared by a group of query heads."""

    @property
    def heads_per_group(self) -> int:
        """Query heads that share one key-value head."""
        return self.num_heads // self.num_groups

    def __str__(self) -> str:
        return f"{self.num_layers} layers of {self.num_heads} query heads and {self.num_groups} key-value heads"


def head_shape(model: Model, where: str = "model") -> HeadShape:
    """The heads of `model`. Raises UserError when its type is not one of `SUPPORTED`, or it is a hybrid already."""
    config = model.config
    if config.get("grafts"):
        names = ", ".join(str(graft.get("name")) for graft in config["grafts"])
        raise UserError(
            f"the model in {model.path} is converted already: it carries the grafts {names}",
            where=where,
            fix="give the pretrained model that it was made from",
        )
    if config.get("model_type") not in SUPPORTED:
        raise UserError(
            f"unsupported base: {model.path} is of the type {config.get('model_type')!r}",
            where=where,
            fix=f"give a model of one of the types {', '.join(SUPPORTED)}",
        )
    return _shape(config, where)


def _shape(config: dict[str, Any], where: str) -> HeadShape:
    missing = [key for key in ("num_hidden_layers", "num_attention_heads") if key not in config]
    if missing:
        raise UserError(f"config.json lacks {' and '.join(missing)}", where=where, fix="save the model again")
    heads = config["num_attention_heads"]
    return HeadShape(config["num_hidden_layers"], heads, config.get("num_key_value_heads") or heads)
