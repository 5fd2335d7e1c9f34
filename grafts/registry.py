"""Every graft by the name that `config.json` calls it. A new one is one line here."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from importlib import import_module
from typing import Any, Final

from pydantic import ValidationError

from grafts.graft import Graft

GRAFTS: Final[dict[str, str]] = {
    "experts": "grafts.experts.graft:Experts",
    "hybrid_heads": "grafts.hybrid.graft:HybridHeads",
    "lowrank": "grafts.lowrank.graft:LowRank",
    "quantised": "grafts.quantised.graft:QuantisedLinears",
    "recursive": "grafts.recursive.graft:Recursive",
}
"""Name → `module:Class`, imported when a model has it."""


def graft_class(name: str) -> type[Graft]:
    """The class of the graft `name`; ValueError with the nearest known name when there is none."""
    if name not in GRAFTS:
        near = get_close_matches(name, GRAFTS, n=1)
        hint = f"; did you mean '{near[0]}'?" if near else "."
        raise ValueError(f"unknown graft '{name}'{hint} Known grafts: {', '.join(sorted(GRAFTS))}")
    module, _, attribute = GRAFTS[name].partition(":")
    return getattr(import_module(module), attribute)


def parse_graft(fields: Mapping[str, Any]) -> Graft:
    """The graft that `Graft.to_dict` wrote; ValueError when the name, the revision or a field does not fit."""
    values = dict(fields)
    name, revision = str(values.pop("name", "")), values.pop("revision", 1)
    kind = graft_class(name)
    if revision != kind.revision:
        raise ValueError(
            f"the model has revision {revision} of the graft '{name}', this regraft computes revision {kind.revision}: "
            f"use the regraft that made the model, or convert it again"
        )
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise ValueError(f"the fields of the graft '{name}' do not fit: {error}") from error
