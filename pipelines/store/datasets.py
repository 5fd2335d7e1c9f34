"""Whether a Dataset holds the columns that its schema declares. Reads the footers of its shards only."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from stages.artifacts import DATASET_COLUMNS, Schema
from stages.errors import UserError, first_line

_FIELD: Final = re.compile(r"(\w+): (\w+)")


def declared_schema(directory: Path) -> Any:
    """The schema in `dataset.json`. Raises UserError when there is none."""
    try:
        return json.loads((directory / "dataset.json").read_bytes())["schema"]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        fix = "write it with DatasetCard(…).write(directory)"
        raise UserError(f"{directory.name}/dataset.json, which declares the schema, is missing", fix=fix) from None


def column_problem(directory: Path, schema: Schema) -> str | None:
    """What keeps the shards in `directory` from being a dataset of `schema`, or None."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if schema not in DATASET_COLUMNS:
        return f"there is no schema {schema!r}; there are {', '.join(DATASET_COLUMNS)}"
    shards = sorted(directory.glob("shard-*.parquet"))
    if not shards:
        return f"a dataset of schema {schema!r} has its rows in shard-*.parquet, and there is none"
    for shard in shards:
        try:
            found = pq.read_schema(shard)
        except (pa.ArrowInvalid, OSError) as error:
            return f"{shard.name} is not a parquet file: {first_line(error)}"
        if problem := _missing(found, DATASET_COLUMNS[schema], shard.name):
            return f"its schema is {schema!r}, and {problem}"
    return None


def _missing(found: Any, columns: Any, shard: str) -> str | None:
    for name, expected in columns.items():
        if name not in found.names:
            return f"{shard} has no column {name!r} ({expected}); it has {', '.join(found.names) or 'none'}"
        is_type = type_name(found.field(name).type)
        if not _fits(is_type, expected):
            return f"the column {name!r} of {shard} is {is_type}, expected {expected}"
    return None


def _fits(found: str, expected: str) -> bool:
    """Whether the types are the same; a struct may have more fields than expected, in any order."""
    if "struct<" not in expected:
        return found == expected
    return found.startswith("list<struct<") and set(_FIELD.findall(expected)) <= set(_FIELD.findall(found))


def type_name(column: Any) -> str:
    """An Arrow type as `DATASET_COLUMNS` writes it; how wide its offsets are, or whether it is a dictionary, is one."""
    from pyarrow import types

    if types.is_list(column) or types.is_large_list(column) or types.is_fixed_size_list(column):
        return f"list<{type_name(column.value_type)}>"
    if types.is_struct(column):
        return f"struct<{_fields(column.field(index) for index in range(column.num_fields))}>"
    if types.is_dictionary(column):
        return type_name(column.value_type)
    return "string" if types.is_large_string(column) else str(column)


def _fields(fields: Iterable[Any]) -> str:
    return ", ".join(f"{field.name}: {type_name(field.type)}" for field in fields)
