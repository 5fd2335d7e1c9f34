"""Checks of what proxies are trained and measured on, before any compute. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stages.errors import UserError
from stages.evaluate.matching import require_tokens_of
from stages.proxy.one_run import digest_of
from stages.proxy.settings import ProxyParameters


def check_proxy_inputs(params: ProxyParameters, inputs: Mapping[str, Any]) -> None:
    """Tokens of the model's tokenizer that fit its context, and held-out data that is not trained on."""
    model, data, validation = inputs["model"], inputs["data"], inputs["validation"]
    # A new Llama is made as long as the windows, whatever the context of the model that lends its tokenizer.
    new = params.start == "scratch"
    for name, each in [("data", data), *((f"validation[{number}]", v) for number, v in enumerate(validation))]:
        require_tokens_of(model, each, name, any_length=new)
    if digest_of(data) in map(digest_of, validation):
        raise UserError(
            "the training data is among the validation data",
            where="validation",
            fix="measure on text that no recipe holds: `STAGE.heldout` of `data.prepare`",
        )
