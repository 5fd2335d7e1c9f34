"""Checks of what proxies are trained and measured on, before any compute. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stages.artifacts import Model
from stages.errors import UserError
from stages.proxy.one_run import digest_of
from stages.proxy.settings import ProxyParameters
from stages.training.checks import check_data


def check_proxy_inputs(params: ProxyParameters, inputs: Mapping[str, Any]) -> None:
    """Tokens of the model's tokenizer that fit its context, and held-out data that is not trained on."""
    model, data, validation = inputs["model"], inputs["data"], inputs["validation"]
    for name, each in [("data", data), *((f"validation[{number}]", v) for number, v in enumerate(validation))]:
        _check_windows(params, model, name, each)
    if digest_of(data) in map(digest_of, validation):
        raise UserError(
            "the training data is among the validation data",
            where="validation",
            fix="measure on text that no recipe holds: `STAGE.heldout` of `data.prepare`",
        )


def _check_windows(params: ProxyParameters, model: Model, name: str, data: Any) -> None:
    # A new Llama is made as long as the windows, whatever the context of the model that lends its tokenizer.
    own = data.card.sequence_length >= 2 and data.card.tokenizer == model.tokenizer_fingerprint
    if not (own and params.start == "scratch"):
        check_data("model", model, name, data)
