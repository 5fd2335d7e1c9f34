"""Private documents as training examples: one document, one example, one unit of privacy. Nothing is packed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import torch
from torch import Tensor

from stages.data.reading import read_batches, read_documents
from stages.errors import UserError
from stages.training.cross_entropy import IGNORED

if TYPE_CHECKING:
    from stages.artifacts import Dataset


@dataclass(frozen=True)
class Prompt:
    """What stands before a document, as token ids that begin with the start token."""

    label: str
    ids: tuple[int, ...]


@dataclass(frozen=True)
class Examples:
    """N documents of at most T tokens: ids [N, T], filled up on the right, and labels [N, T]."""

    ids: Tensor
    labels: Tensor


def make_prompts(tokenizer: Any, start: int, prompt: str, labels: Sequence[str]) -> list[Prompt]:
    """A prompt for each label (one without any), `{label}` in `prompt` replaced."""
    texts = {label: prompt.replace("{label}", label) for label in labels or ("",)}
    return [Prompt(label, (start, *_encode(tokenizer, text))) for label, text in texts.items()]


def encode(
    tokenizer: Any, rows: Sequence[tuple[str, str]], prompts: Sequence[Prompt], length: int, end: int
) -> Examples:
    """Documents (text, label) behind their prompts, closed by `end`, cut at `length` tokens.

    Every example has the shape [length], whatever the documents are: the longest private document shows nowhere.
    """
    by_label = {prompt.label: prompt.ids for prompt in prompts}
    ids, labels = (torch.full((len(rows), length), fill) for fill in (end, IGNORED))
    for number, (text, label) in enumerate(rows):
        before = by_label[label]
        after = [*_encode(tokenizer, text), end][: length - len(before)]
        whole = torch.tensor([*before, *after])
        ids[number, : len(whole)] = whole
        labels[number, len(before) : len(whole)] = whole[len(before) :]
    return Examples(ids, labels)


def read_rows(data: Dataset, label_field: str | None, labels: Sequence[str]) -> list[tuple[str, str]]:
    """(text, label) of every document; raises UserError when a label is not among `labels`, without telling which."""
    texts = list(read_documents(data.shards))
    if label_field is None:
        return [(text, "") for text in texts]
    rows = list(zip(texts, _labels(data, label_field), strict=True))
    if any(label not in labels for _, label in rows):
        raise UserError(
            f"a document has a label in column {label_field!r} that is none of {', '.join(labels)}",
            where="private",
            fix="name every label in `labels`, or leave the documents with others out",
        )
    return rows


def _labels(data: Dataset, field: str) -> Iterator[str]:
    for shard in data.shards:
        for batch in read_batches(shard, columns=[field]):
            column = batch.column(0)
            is_text = pa.types.is_string(column.type) or pa.types.is_large_string(column.type)
            values = (column.cast(pa.large_binary()) if is_text else column).to_pylist()
            yield from (v.decode(errors="replace") if isinstance(v, bytes) else str(v) for v in values)


def _encode(tokenizer: Any, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False).ids
