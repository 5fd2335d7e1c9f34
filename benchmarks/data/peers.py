"""The environment of datatrove and datasketch."""

from __future__ import annotations

from pathlib import Path

from benchmarks.environments import ensure

DATATROVE = "0.10.1"
DATASKETCH = "2.0.0"


def python(cache: Path) -> Path:
    """The interpreter that has them, and what datatrove's reader and tokenizer import."""
    return (
        ensure(cache, "datatrove", DATATROVE, ("tokenizers==0.23.3", "orjson", f"datasketch=={DATASKETCH}")) / "python"
    )
