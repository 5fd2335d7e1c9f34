"""What a model's files say of its experts: how many a token goes through. Imports nothing heavy."""

from __future__ import annotations

from stages.artifacts import Model
from stages.errors import UserError
from stages.evaluate.matching import text_config
from stages.training.checks import num_experts


def experts_per_token(model: Model) -> int:
    """Feed-forward experts of a layer that each token of a mixture, grafted or of a standard class, goes through.

    Raises UserError for a dense model.
    """
    for graft in model.grafts:
        if graft["name"] == "experts":
            return graft["top_k"] * graft["split"]
    top_k = text_config(model.config).get("num_experts_per_tok")
    if not num_experts(model) or not top_k:
        raise UserError(
            f"the model, a {model.config.get('model_type')}, has no experts to route to",
            where="model",
            fix="give the model of an `upcycle.btx`, `.bam`, `.sparse` or `.drop`",
        )
    return top_k
