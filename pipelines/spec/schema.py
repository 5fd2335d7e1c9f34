"""The JSON Schema of pipeline files: completion and checks in editors, with each method's own parameters."""

from __future__ import annotations

from typing import Any

from pipelines.spec.load import NAME, PIPELINE_KEYS
from pipelines.spec.node import RESOURCE_KEYS
from pipelines.spec.overrides import STAGE_KEYS
from stages import registry
from stages.documentation import document

_STRINGS = {"oneOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}
_REFERENCE = {"type": "string", "pattern": r"\$\{(params|matrix)\.[^}]+\}"}


def json_schema() -> dict[str, Any]:
    """The schema, as a draft 2020-12 document."""
    stage, definitions = _stage(), {}
    stage["allOf"] = [_when(method, definitions) for method in registry.METHODS]
    keys = {
        "name": {"type": "string", "pattern": f"^{NAME.pattern}$"},
        "description": {"type": "string"},
        "seed": {"type": "integer"},
        "params": {"type": "object", "description": "Values for ${params.NAME}; replaced with --set params.NAME=…"},
        "stages": {"type": "object", "minProperties": 1, "additionalProperties": stage},
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$defs": definitions,
        "title": "regraft pipeline",
        **_object({key: keys[key] for key in PIPELINE_KEYS}),
        "required": ["name", "stages"],
    }


def _stage() -> dict[str, Any]:
    number, count = {"type": "number", "minimum": 0}, {"type": "integer", "minimum": 1}
    resources = {
        "workers": _or_reference(count),
        "cpus": _or_reference(number),
        "gpus": _or_reference(number),
        "memory": {"type": ["string", "integer"], "description": "Such as 4GiB"},
    }
    keys = {
        "uses": {
            "anyOf": [{"enum": list(registry.METHODS)}, {"type": "string", "pattern": "^[\\w.]+:\\w+$"}],
            "description": "The method, or MODULE:CLASS of your own stage",
        },
        "with": {"type": "object", "description": "The method's parameters"},
        "inputs": {"type": "object", "additionalProperties": _STRINGS, "description": "STAGE or STAGE.OUTPUT"},
        "needs": {**_STRINGS, "description": "Stages to wait for without reading from them"},
        "matrix": {"type": "object", "additionalProperties": {"type": "array", "minItems": 1}},
        "resources": _object({key: resources[key] for key in RESOURCE_KEYS}),
        "max_parallel": _or_reference({**count, "description": "Arms of the matrix at a time"}),
        "retries": _or_reference({"type": "integer", "minimum": 0}),
        "timeout": {"type": ["string", "number"], "description": "Such as 90s, 15m or 2h"},
        "expect": {"type": "object", "additionalProperties": {"type": "string"}},
        "seed": _or_reference({"type": "integer"}),
    }
    return {**_object({key: keys[key] for key in STAGE_KEYS}), "required": ["uses"]}


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    """A mapping with these keys and no others."""
    return {"type": "object", "additionalProperties": False, "properties": properties}


def _or_reference(value: dict[str, Any]) -> dict[str, Any]:
    """What is such a value, or refers to one."""
    return {"anyOf": [value, _REFERENCE], **{key: value[key] for key in ("description",) if key in value}}


def _when(method: str, definitions: dict[str, Any]) -> dict[str, Any]:
    """If `uses` is this method, then `with` and `inputs` are its own."""
    stage = registry.find(method)
    document()
    params = stage.Params.model_json_schema()
    definitions.update(params.pop("$defs", {}))
    params["properties"] = {
        name: {
            "description": "",
            **_or_reference(value),
            "x-identity": stage.Params.identity_class(name),
        }
        for name, value in params.get("properties", {}).items()
    }
    params.pop("required", None)
    inputs = {"properties": dict.fromkeys(stage.inputs, _STRINGS), "additionalProperties": False}
    then = {"properties": {"with": params, "inputs": inputs}}
    return {"if": {"properties": {"uses": {"const": method}}, "required": ["uses"]}, "then": then}
