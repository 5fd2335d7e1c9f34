"""What a model's files say of its experts: how many, and how many a token goes through. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass

from stages.artifacts import Model
from stages.errors import UserError


@dataclass(frozen=True)
class Routing:
    """The feed-forward experts of a layer, and whether there are attention experts beside them."""

    num_experts: int
    top_k: int
    num_attention: int = 0
    """Attention experts of a layer; 0 without."""


def routing_of(model: Model, role: str = "model") -> Routing:
    """The routing of a mixture, grafted or of a standard class. Raises UserError for a dense model."""
    for graft in model.grafts:
        if graft["name"] == "experts":
            split, whole = graft["split"], graft["num_experts"]
            return Routing(whole * split, graft["top_k"] * split, whole if graft["attention"] else 0)
    config = model.config
    count, top_k = config.get("num_local_experts") or config.get("num_experts"), config.get("num_experts_per_tok")
    if not count or not top_k:
        raise UserError(
            f"the model, a {config.get('model_type')}, has no experts to route to",
            where=role,
            fix="give the model of an `upcycle.btx`, `.bam`, `.sparse` or `.drop`",
        )
    return Routing(count, top_k)
