"""A stage's `with`: checked against what its method declares."""

from __future__ import annotations

import json
from typing import Any

from pydantic import ValidationError

from pipelines.spec.document import Path
from pipelines.spec.problems import Nearest
from pipelines.spec.reading import Reader
from stages.documentation import document
from stages.stage import Stage


def read_parameters(reader: Reader, stage: type[Stage], path: Path, body: dict[str, Any]) -> Any:
    """The typed parameters; None, and every problem noted, when they are wrong."""
    values = reader.typed(body, path, "with", dict, {})
    try:
        return stage.Params.model_validate_json(json.dumps(values), strict=True)
    except ValidationError as error:
        for found in error.errors(include_url=False, include_context=False):
            _tell(reader, stage, (*path, "with"), found)
        return None


def _tell(reader: Reader, stage: type[Stage], path: Path, found: Any) -> None:
    where, kind = tuple(found["loc"]), found["type"]
    name = ".".join(str(part) for part in where)
    if kind == "extra_forbidden":
        hint = Nearest(str(where[-1]), stage.Params.model_fields)
        reader.tell((*path, *where), f"unknown parameter {name!r}", hint, key=True)
    elif kind == "missing":
        document()
        field = stage.Params.model_fields.get(str(where[0]))
        reader.tell(path, f"missing parameter {name!r}", (field.description if field else "") or "")
    else:
        message = found["msg"].removeprefix("Value error, ")
        told = f"{message[0].lower()}{message[1:]}"
        one = f"parameter {name!r}: {told}, found {found['input']!r}"
        reader.tell((*path, *where), one if where else f"parameters that do not fit each other: {told}")
