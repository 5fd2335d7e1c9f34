"""A model's own `tokenizer.json`, for text as it is."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer


def open_tokenizer(directory: Path) -> Tokenizer:
    """The tokenizer in a model's directory, without the padding and truncation that a call may have left in it."""
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer
