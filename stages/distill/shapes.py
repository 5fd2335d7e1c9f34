"""How large a pruned student is, from its teacher's config and the shares it keeps. Imported to plan: no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from stages.errors import UserError

DIVISIBLE: Final = ("gemma3_text", "llama")
"""Model types whose config insists that the hidden size is a multiple of the number of heads."""
SCALED: Final = ("gemma3_text",)
"""Model types that scale the embedding by the hidden size, so that narrowing it changes what every layer reads."""


@dataclass(frozen=True)
class Shape:
    """Counts of a decoder; `num_heads` is a multiple of `num_groups` (key-value heads)."""

    num_layers: int
    num_groups: int
    num_heads: int
    head_dim: int
    num_channels: int
    """Of each feed-forward part."""
    hidden_size: int

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Shape:
        """The shape that a `config.json` of a supported base says."""
        heads, hidden = config["num_attention_heads"], config["hidden_size"]
        groups = config.get("num_key_value_heads") or heads
        head_dim = config.get("head_dim") or hidden // heads
        return cls(config["num_hidden_layers"], groups, heads, head_dim, config["intermediate_size"], hidden)

    @property
    def heads_in_group(self) -> int:
        """Query heads that read one key-value head."""
        return self.num_heads // self.num_groups


def student_shape(teacher: Shape, *, heads: float, ffn: float, hidden: float, multiple: int) -> Shape:
    """The teacher's shape with these shares of its width; depth as it was. Widths are multiples of `multiple`."""
    groups = max(1, round(teacher.num_groups * heads))
    return Shape(
        num_layers=teacher.num_layers,
        num_groups=groups,
        num_heads=groups * teacher.heads_in_group,
        head_dim=teacher.head_dim,
        num_channels=_share(teacher.num_channels, ffn, multiple),
        hidden_size=_share(teacher.hidden_size, hidden, multiple),
    )


def require_possible(model_type: str, shape: Shape, teacher: Shape) -> None:
    """Raise UserError unless the architecture `model_type` comes in `shape`."""
    if model_type in SCALED and shape.hidden_size != teacher.hidden_size:
        raise UserError(
            f"{model_type} scales its embedding by the hidden size: {teacher.hidden_size} cannot become "
            f"{shape.hidden_size} without changing what every layer reads",
            fix="set `hidden_fraction: 1`",
        )
    if model_type in DIVISIBLE and shape.hidden_size % shape.num_heads:
        raise UserError(
            f"a {model_type} with {shape.num_heads} heads cannot have hidden size {shape.hidden_size}: its config asks "
            "for a multiple of the heads",
            fix=f"choose `heads_fraction` and `hidden_fraction` so that it is one (the teacher has {teacher.num_heads} "
            f"heads in {teacher.num_groups} groups, hidden size {teacher.hidden_size}), or set `multiple` to fit",
        )


def _share(size: int, fraction: float, multiple: int) -> int:
    return size if fraction == 1 else min(size, max(multiple, round(size * fraction / multiple) * multiple))
