"""Private documents as training examples: one document, one example, one unit of privacy. Nothing is packed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from stages.data.reading import read_batches
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
    """(text, label) of every document; raises UserError when a label is not among `labels`."""
    rows = list(_rows(data, label_field))
    if label_field is not None:
        unknown = next((label for _, label in rows if label not in labels), None)
        if unknown is not None:
            raise UserError(
                f"a document has label {unknown!r} in column {label_field!r}, named are {', '.join(labels)}",
                where="private",
                fix="name every label in `labels`, or leave the documents with others out",
            )
    return rows


def _rows(data: Dataset, label_field: str | None) -> Iterator[tuple[str, str]]:
    columns = ["text", *([label_field] if label_field else [])]
    for shard in data.shards:
        for batch in read_batches(shard, columns=columns):
            texts = batch.column("text").to_pylist()
            labels = batch.column(label_field).to_pylist() if label_field else [""] * len(texts)
            yield from ((text or "", str(label)) for text, label in zip(texts, labels, strict=True))


def _encode(tokenizer: Any, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False).ids
