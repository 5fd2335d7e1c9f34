"""Text cut into windows of token ids the way a published protocol does it.

Two protocols, on the documents joined by a blank line and encoded in one piece:

- `disjoint`: windows of L tokens that share nothing; each predicts its tokens after the first. This is what GPTQ (arXiv
  2210.17323) and the quantisation papers after it print. One token in L is never predicted, and a tokenizer that opens
  a text with a special token opens the first window with it.
- `rolling`: what `loglikelihood_rolling` of EleutherAI's lm-eval does with `max_length` L and its `context_len` of 1.
  Every token is predicted: the first from the tokenizer's beginning-of-text token (its end-of-text token, where it has
  no other), and the first of each later window from the last token of the window before. So a window is L + 1 tokens
  of which one is shared, and the model still reads L. The last, shorter window is filled up from before, to L tokens
  of context in all; what is read twice is predicted once.

So they differ in three things: one token in L that only `rolling` predicts, and that from a single token; where the
windows lie, by up to a token; the context of the last window. On the same windows, lm-eval and this module give the
same sum: tests hold both protocols to that.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import torch
from tokenizers import Encoding, Tokenizer
from torch import Tensor

from stages.artifacts import Dataset, Model
from stages.data.reading import read_documents
from stages.data.tokenizer import open_tokenizer
from stages.errors import UserError

Protocol = Literal["disjoint", "rolling"]
SEPARATOR: Final = "\n\n"
BYTES_PER_TOKEN: Final = 8
"""How much text is read at first for each token that a `limit` asks for."""


@dataclass(frozen=True)
class TextWindows:
    """Windows of a text, and the counts that turn nats a token into bits a byte."""

    windows: Tensor
    """Full windows [N, T], int64."""
    tail: Tensor | None
    """The last, shorter window, when it holds at least two tokens."""
    tail_targets: int
    """How many of its last tokens are to be predicted."""
    num_tokens: int
    """Tokens of text in the windows, without special ones; a token that two windows share counts once."""
    num_bytes: float
    """UTF-8 bytes of the text that the windows cover; a share of the whole where only that is known."""

    @property
    def tokens_per_byte(self) -> float:
        """Tokens of text for each byte."""
        return self.num_tokens / self.num_bytes


def text_windows(model: Model, data: Dataset, window: int, limit: int | None, protocol: Protocol) -> TextWindows:
    """Cut the documents of the `text` dataset `data`, in `model`'s tokens, into windows in which it reads `window`.

    With `limit`, the first so many windows; text far behind them is not read. Raises UserError when the text has fewer
    than two tokens.
    """
    tokenizer = open_tokenizer(model.path)
    wanted = None if limit is None else limit * window
    text, encoding = _encode(
        tokenizer, read_documents(data.shards), wanted, spare=window, special=protocol == "disjoint"
    )
    prefix = [prefix_token(model.path, tokenizer)] if protocol == "rolling" else []
    ids = (prefix + encoding.ids)[: None if wanted is None else wanted + len(prefix)]
    if len(ids) < 2:
        raise UserError(f"the text in {data.path} has {len(ids)} tokens", fix="give text of at least two tokens")
    return _cut(ids, window, len(prefix), text, encoding)


def prefix_token(directory: Path, tokenizer: Tokenizer) -> int:
    """Id of the token that the `rolling` protocol predicts a text's first token from."""
    file = directory / "tokenizer_config.json"
    declared = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    names = [_content(declared.get(key)) for key in ("bos_token", "eos_token")]
    found = next((number for name in names if name and (number := tokenizer.token_to_id(name)) is not None), None)
    if found is None:
        raise UserError(
            f"the tokenizer in {directory} has neither a beginning-of-text nor an end-of-text token: {names}",
            fix="use protocol: disjoint",
        )
    return found


def _cut(ids: list[int], window: int, overlap: int, text: str, encoding: Encoding) -> TextWindows:
    """Windows of `window + overlap` ids, each sharing `overlap` of them with the one before."""
    ids_P, length = torch.tensor(ids), window + overlap
    num_full = (len(ids) - overlap) // window
    full = num_full * window
    windows_NT = ids_P[: full + overlap].unfold(0, length, window) if num_full else ids_P[:0].view(0, length)
    # A disjoint tail predicts all its tokens but the first, so a tail of one token is nothing.
    tail_targets = max(0, len(ids) - full - 1)
    num_ids = (len(ids) if tail_targets else full + overlap) - overlap
    start = max(0, len(ids) - length) if overlap else full
    return TextWindows(
        windows=windows_NT,
        tail=ids_P[start:] if tail_targets else None,
        tail_targets=tail_targets,
        num_tokens=num_ids - sum(encoding.special_tokens_mask[:num_ids]),
        num_bytes=len(text[: max(stop for _, stop in encoding.offsets[:num_ids])].encode()),
    )


def _encode(
    tokenizer: Tokenizer, documents: Iterator[str], wanted: int | None, *, spare: int, special: bool
) -> tuple[str, Encoding]:
    """Encode the documents as one text, or with `wanted` a beginning of it that is longer than that by `spare` tokens.

    What comes after the cut can change the last tokens before it, so those are kept clear of what is wanted.
    """
    parts: list[str] = []
    size, target = 0, None if wanted is None else (wanted + spare) * BYTES_PER_TOKEN
    for document in documents:
        parts.append(document)
        size += len(document.encode())
        if wanted is not None and target is not None and size >= target:
            text = SEPARATOR.join(parts)
            encoding = tokenizer.encode(text, add_special_tokens=special)
            if len(encoding.ids) >= wanted + spare:
                return text, encoding
            target = 2 * size
    text = SEPARATOR.join(parts)
    return text, tokenizer.encode(text, add_special_tokens=special)


def _content(token: Any) -> str:
    return str(token.get("content", "") if isinstance(token, dict) else token or "")
