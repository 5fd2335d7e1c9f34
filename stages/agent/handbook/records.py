"""The handbook as a dataset: a behaviour a row."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import pyarrow as pa

from stages.agent.conversation.records import read_rows, write_rows
from stages.agent.handbook.entries import Behaviour, Handbook
from stages.artifacts import Dataset
from stages.errors import UserError

_COLUMNS: Final = pa.schema([("text", pa.string()), ("name", pa.string()), ("instruction", pa.string())])


def write_handbook(directory: Path, handbook: Handbook, **about: str) -> None:
    """Write a `text` dataset; `about` are `licence` and `source` of its card."""
    rows = [{"text": one.text, "name": one.name, "instruction": one.instruction} for one in handbook.entries]
    write_rows(directory, "text", _COLUMNS, rows, (row["text"] for row in rows), about)


def read_handbook(dataset: Dataset) -> Handbook:
    """The handbook in a dataset. Raises UserError when it holds other text."""
    rows = list(read_rows(dataset))
    if any(not {"name", "instruction"} <= row.keys() for row in rows):
        raise UserError(f"{dataset.path} is text, but no handbook", fix="make one with `agent.handbook`")
    return Handbook(tuple(Behaviour(row["name"], row["instruction"]) for row in rows))
