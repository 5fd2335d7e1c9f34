"""Text to token ids, with a model's own `tokenizer.json` and nothing else of the model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Final, Literal, NamedTuple

import numpy as np

from stages.data.corpus import read_documents
from stages.data.tokenizer import open_tokenizer
from stages.errors import UserError

Separator = Literal["eos", "blank-line"]
ENCODED_CHARACTERS: Final = 2**19
"""Characters encoded at once: a tokenizer takes some hundred bytes a token meanwhile."""


class Encoder:
    """Encodes documents without special tokens, padding or truncation, with the tokenizer in a model's directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._tokenizer = open_tokenizer(directory)

    def encode(self, texts: list[str]) -> list[np.ndarray]:
        """The token ids of each text, int32."""
        found = (self._tokenizer.encode_batch_fast(some, add_special_tokens=False) for some in _runs(texts))
        return [np.array(encoding.ids, np.int32) for encodings in found for encoding in encodings]

    def bytes_before(self, text: str, token: int) -> int:
        """UTF-8 bytes of `text` before its token of index `token`."""
        start, _ = self._tokenizer.encode(text, add_special_tokens=False).offsets[token]
        return len(text[:start].encode())

    def separator(self, kind: Separator) -> tuple[list[int], int]:
        """The ids that stand between documents and the UTF-8 bytes of text they stand for."""
        if kind == "blank-line":
            return self.encode(["\n\n"])[0].tolist(), 2
        token = self._eos_token()
        found = self._tokenizer.token_to_id(token) if token else None
        if found is None:
            raise UserError(
                f"the tokenizer in {self._directory} has no end-of-text token (eos_token: {token!r})",
                fix="set separator: blank-line",
            )
        return [found], 0

    def _eos_token(self) -> str:
        file = self._directory / "tokenizer_config.json"
        declared = json.loads(file.read_text(encoding="utf-8")).get("eos_token") if file.exists() else None
        return str(declared.get("content", "") if isinstance(declared, dict) else declared or "")


def _runs(texts: list[str]) -> Iterator[list[str]]:
    """`texts` in runs of about `ENCODED_CHARACTERS`."""
    start = size = 0
    for end, text in enumerate(texts, start=1):
        size += len(text)
        if size >= ENCODED_CHARACTERS or end == len(texts):
            yield texts[start:end]
            start, size = end, 0


class EncodingTask(NamedTuple):
    """Documents of a corpus to encode, by their numbers, and the directory of the model that has the tokenizer."""

    corpus: Path
    numbers: np.ndarray
    model: Path


class Encoded(NamedTuple):
    """D documents: their ids one after another, and for each its number, tokens and UTF-8 bytes."""

    ids: np.ndarray
    """int32 [tokens]."""
    numbers: np.ndarray
    """[D], like those that follow."""
    lengths: np.ndarray
    num_bytes: np.ndarray


def encode_documents(task: EncodingTask) -> Encoded:
    """Read and encode the documents of `task`."""
    texts = read_documents(task.corpus, task.numbers.tolist())
    found = encoder_of(task.model).encode(texts)
    return Encoded(
        np.concatenate(found),
        task.numbers,
        np.array([len(ids) for ids in found]),
        np.array([len(text.encode()) for text in texts]),
    )


@lru_cache(maxsize=2)
def encoder_of(directory: Path) -> Encoder:
    """The encoder of a model's directory, read once in a process."""
    return Encoder(directory)
