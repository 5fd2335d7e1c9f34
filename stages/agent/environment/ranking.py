"""What a search can rank by, and what it needs for that. Imported to plan: nothing heavy."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Literal

from stages.errors import UserError

Ranking = Literal["bm25", "dense", "fused"]


def require_encoder_tools() -> None:
    """Raise UserError where what runs encoders is missing."""
    if find_spec("sentence_transformers") is None:
        raise UserError(
            "search by meaning needs sentence-transformers, which is not installed", fix="pip install 'regraft[dense]'"
        )
