"""Text to token ids, with a model's own `tokenizer.json` and nothing else of the model."""

from __future__ import annotations

import json
from typing import Literal

from tokenizers import Tokenizer

from stages.artifacts import Model
from stages.errors import UserError

Separator = Literal["eos", "blank-line"]


class Encoder:
    """Encodes documents without special tokens, padding or truncation."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._tokenizer = Tokenizer.from_file(str(model.path / "tokenizer.json"))
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()

    def encode(self, texts: list[str]) -> list[tuple[list[int], list[int]]]:
        """For each text its token ids, and the character where each token starts."""
        found = self._tokenizer.encode_batch(texts, add_special_tokens=False)
        return [(encoding.ids, [start for start, _ in encoding.offsets]) for encoding in found]

    def separator(self, kind: Separator) -> tuple[list[int], int]:
        """The ids that stand between documents and the UTF-8 bytes of text they stand for."""
        if kind == "blank-line":
            return self.encode(["\n\n"])[0][0], 2
        token = self._eos_token()
        found = self._tokenizer.token_to_id(token) if token else None
        if found is None:
            raise UserError(
                f"the tokenizer in {self._model.path} has no end-of-text token (eos_token: {token!r})",
                fix="set separator: blank-line",
            )
        return [found], 0

    def _eos_token(self) -> str:
        file = self._model.path / "tokenizer_config.json"
        declared = json.loads(file.read_text(encoding="utf-8")).get("eos_token") if file.exists() else None
        return str(declared.get("content", "") if isinstance(declared, dict) else declared or "")
