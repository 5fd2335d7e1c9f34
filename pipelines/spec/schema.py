"""The JSON Schema of pipeline files: completion and checks in editors, with each method's own parameters."""

from __future__ import annotations

from typing import Any

from stages import registry
from stages.documentation import document

_STRINGS = {"oneOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}
_REFERENCE = {"type": "string", "pattern": r"\$\{(params|matrix)\.[^}]+\}"}


def json_schema() -> dict[str, Any]:
    """The schema, as a draft 2020-12 document."""
    stage, definitions = _stage(), {}
    stage["allOf"] = [_when(method, definitions) for method in registry.METHODS]
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$defs": definitions,
        "title": "regraft pipeline",
        "type": "object",
        "required": ["name", "stages"],
        "additionalProperties": False,
        "properties": {
            "name": {"type": "string", "pattern": "^[A-Za-z_][A-Za-z0-9_-]{0,63}$"},
            "description": {"type": "string"},
            "seed": {"type": "integer"},
            "params": {"type": "object", "description": "Values for ${params.NAME}; replaced with --set params.NAME=…"},
            "stages": {"type": "object", "minProperties": 1, "additionalProperties": stage},
        },
    }


def _stage() -> dict[str, Any]:
    number = {"type": "number", "minimum": 0}
    return {
        "type": "object",
        "required": ["uses"],
        "additionalProperties": False,
        "properties": {
            "uses": {
                "anyOf": [{"enum": list(registry.METHODS)}, {"type": "string", "pattern": "^[\\w.]+:\\w+$"}],
                "description": "The method, or MODULE:CLASS of your own stage",
            },
            "with": {"type": "object", "description": "The method's parameters"},
            "inputs": {"type": "object", "additionalProperties": _STRINGS, "description": "STAGE or STAGE.OUTPUT"},
            "needs": {**_STRINGS, "description": "Stages to wait for without reading from them"},
            "matrix": {"type": "object", "additionalProperties": {"type": "array", "minItems": 1}},
            "resources": {
                "type": "object",
                "additionalProperties": False,
                "properties": {
                    "workers": {"type": "integer", "minimum": 1},
                    "cpus": number,
                    "gpus": number,
                    "memory": {"type": ["string", "integer"], "description": "Such as 4GiB"},
                },
            },
            "max_parallel": {"type": "integer", "minimum": 1, "description": "Arms of the matrix at a time"},
            "retries": {"type": "integer", "minimum": 0},
            "timeout": {"type": ["string", "number"], "description": "Such as 90s, 15m or 2h"},
            "expect": {"type": "object", "additionalProperties": {"type": "string"}},
            "seed": {"type": "integer"},
        },
    }


def _when(method: str, definitions: dict[str, Any]) -> dict[str, Any]:
    """If `uses` is this method, then `with` and `inputs` are its own."""
    stage = registry.find(method)
    document()
    params = stage.Params.model_json_schema()
    definitions.update(params.pop("$defs", {}))
    params["properties"] = {
        name: {
            "anyOf": [value, _REFERENCE],
            "description": value.get("description", ""),
            "x-identity": stage.Params.identity_class(name),
        }
        for name, value in params.get("properties", {}).items()
    }
    params.pop("required", None)
    inputs = {"properties": dict.fromkeys(stage.inputs, _STRINGS), "additionalProperties": False}
    then = {"properties": {"with": params, "inputs": inputs}}
    return {"if": {"properties": {"uses": {"const": method}}, "required": ["uses"]}, "then": then}
