"""Which safetensors files hold a model, where others lie beside them. Imported to plan: no torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

from stages.errors import UserError, listing

WHOLE: Final = "model.safetensors"
INDEX: Final = "model.safetensors.index.json"


def weight_files(directory: Path) -> list[Path]:
    """The files that transformers would load, sorted: `model.safetensors`, else the shards of the index, else all.

    Raises UserError when the index is damaged or names a shard that is not there.
    """
    if (directory / WHOLE).is_file():
        return [directory / WHOLE]
    if not (directory / INDEX).is_file():
        return sorted(directory.glob("*.safetensors"))
    shards = _indexed(directory / INDEX)
    if missing := [shard.name for shard in shards if not shard.is_file()]:
        raise UserError(
            f"{directory / INDEX} names {len(shards)} shards, {len(missing)} of them are missing: {listing(missing)}",
            fix="fetch the model again",
        )
    return shards


def _indexed(index: Path) -> list[Path]:
    try:
        names = set(json.loads(index.read_bytes())["weight_map"].values())
        return sorted(index.with_name(Path(name).name) for name in names)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{index} is damaged: {error!r}", fix="fetch the model again") from error
