"""Pure functions on heads: which key-value group each reads, fusion of the branches, query scale, windows, padding.

A head is a query head, numbered as in the teacher. Shapes: B rows, T tokens, H heads, G key-value groups, D head width.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

import torch
from torch import Tensor

from grafts.arithmetic import widened

BLOCK_QUERIES: Final = 256
"""Queries whose window is computed at once."""
LENGTH_EPS: Final = 1e-6
"""Added to a squared length before it divides, as Gated DeltaNet's kernels do."""


def groups_of(heads: Sequence[int], heads_per_group: int) -> tuple[int, ...]:
    """The key-value groups that `heads` read, ascending: what a cache has to keep for them."""
    return tuple(sorted({head // heads_per_group for head in heads}))


def rows_of(matrix: Tensor, heads: Sequence[int], head_dim: int) -> Tensor:
    """The rows [len(heads)·D, …] of a projection's weight or bias [H·D, …] that make `heads`, in that order."""
    return matrix.unflatten(0, (-1, head_dim))[list(heads)].flatten(0, 1)


def join(branches: Sequence[tuple[Sequence[int], Tensor]]) -> Tensor:
    """Index-preserving concatenation: outputs [B, T, n, D] of disjoint heads, each head back in its own place.

    Raises ValueError unless the heads of all branches are 0 to H - 1, each once.
    """
    heads = [head for branch, _ in branches for head in branch]
    if sorted(heads) != list(range(len(heads))):
        raise ValueError(f"the branches hold the heads {heads}, expected each of 0 to {len(heads) - 1} once")
    together = torch.cat([output for _, output in branches], dim=2)
    if heads == sorted(heads):
        return together
    place = sorted(range(len(heads)), key=heads.__getitem__)
    return together[:, :, place]


def normalise(output_BTHD: Tensor, gain_H: Tensor, eps: float) -> Tensor:
    """Scale-normalised fusion: each head's output to root mean square 1, times its own gain (arXiv 2606.20097)."""
    wide = widened(output_BTHD)
    unit = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return (unit * gain_H.to(wide.dtype)[:, None]).to(output_BTHD.dtype)


def length_scale(positions: Tensor, offset: float) -> Tensor:
    """log(t + a) / log a for 0-based positions t and a = `offset` > 1, in float32: 1 at the start, then slowly more."""
    return torch.log(positions.float() + offset) / torch.log(torch.tensor(offset))


def unit_length(x: Tensor) -> Tensor:
    """`x` with length 1 along its last dimension, as Gated DeltaNet's kernels normalise queries and keys."""
    wide = widened(x)
    return (wide * torch.rsqrt(wide.square().sum(-1, keepdim=True) + LENGTH_EPS)).to(x.dtype)


def real_tokens(mask: Tensor | None, num_tokens: int) -> Tensor | None:
    """Which of the last `num_tokens` tokens are text and which are padding [B, T], from an attention mask; None: all.

    `mask` is what `transformers` gives an attention layer: 4-D (True or 0.0 where attended) or 2-D for flash attention.
    A token is text when it attends to itself. ValueError for packed sequences: a state cannot be cut at their borders.
    """
    if mask is None:
        return None
    _require_tensor(mask)
    if mask.dim() == 2:
        return mask[:, -num_tokens:].bool()
    attends = (mask if mask.dtype == torch.bool else mask == 0)[:, 0]
    offset = attends.shape[-1] - num_tokens
    real_BT = attends.diagonal(offset, dim1=-2, dim2=-1)
    to_previous = attends[:, 1:].diagonal(offset, dim1=-2, dim2=-1)
    if num_tokens > 1 and (real_BT[:, 1:] & real_BT[:, :-1] & ~to_previous).any():
        raise ValueError(
            "linear heads do not take packed sequences (`position_ids` that start again): give each its own row"
        )
    return real_BT


def first_tokens(mask: Tensor) -> Tensor:
    """The first column that each query may attend to [B, T], where its text begins, from a 4-D mask over all columns.

    Texts that are packed into one row begin at columns of their own. Padding begins after the last column.
    """
    _require_tensor(mask)
    attended = mask if mask.dtype == torch.bool else mask == 0
    some_BT, first_BT = attended[:, 0].view(torch.uint8).max(-1)
    return first_BT.masked_fill(some_BT == 0, mask.shape[-1])


def window_mask(
    mask: Tensor | None,
    num_queries: int,
    keys_K: Tensor,
    window: int,
    sinks: int = 0,
    starts_BT: Tensor | None = None,
) -> Tensor | None:
    """`mask` for the keys of columns `keys_K`, narrowed to the `window` latest of each query and the first `sinks` of
    its text, which begins at `starts_BT` or at 0; None when nothing is hidden.

    The queries are the last columns. `mask` is as for `real_tokens`, over all columns, or without sinks over at least
    the last K. The result is of its kind; without one it is boolean for `scaled_dot_product_attention`.
    """
    _require_tensor(mask)
    if mask is not None and mask.dim() == 2:
        return mask[:, -len(keys_K) :]
    if mask is None and num_queries == 1 and len(keys_K) <= window + sinks:
        return None
    last = keys_K[-1]
    queries = (last + 1 - torch.arange(num_queries, 0, -1, device=keys_K.device))[:, None]
    seen = (keys_K > queries - window)[None, None]
    if sinks:
        start = starts_BT[:, None, :, None] if starts_BT is not None else 0
        seen = seen | ((keys_K >= start) & (keys_K < start + sinks))
    seen = seen & (keys_K <= queries)
    if mask is None:
        return seen
    cut = mask[..., keys_K - last - 1]
    return cut & seen if cut.dtype == torch.bool else cut.masked_fill(~seen, torch.finfo(cut.dtype).min)


class Block(NamedTuple):
    """Some of T queries, and the keys that any of them may see."""

    queries: slice
    keys: slice | Tensor
    """Into what the keys are, or their indices."""
    num_behind: int
    """Queries after them."""

    @property
    def num_queries(self) -> int:
        """In the block."""
        return self.queries.stop - self.queries.start

    def of(self, mask: Tensor | None) -> Tensor | None:
        """The rows of a 4-D mask that are the block's, up to the column of its last query."""
        if mask is None or (self.queries.start == 0 and self.num_behind == 0):
            return mask
        return mask[:, :, self.queries, : mask.shape[-1] - self.num_behind]


def blocks(num_queries: int, keys_K: Tensor, starts_BT: Tensor | None, window: int, sinks: int) -> Iterator[Block]:
    """The queries, `BLOCK_QUERIES` at a time, each with the keys of their windows and the first `sinks` of their texts.

    So a window costs what it is wide, not what the text is long. Arguments as for `window_mask`.
    """
    if num_queries <= BLOCK_QUERIES:
        yield Block(slice(0, num_queries), slice(None), 0)
        return
    columns = keys_K.tolist()
    starts = torch.zeros(1, num_queries, dtype=torch.long) if starts_BT is None else starts_BT.cpu()
    padded = starts.amin(1).max().item() if sinks else 0
    for begin in range(0, num_queries, BLOCK_QUERIES):
        end = min(begin + BLOCK_QUERIES, num_queries)
        first, behind = columns[-1] + 1 - num_queries + begin, num_queries - end
        oldest, stop = bisect_left(columns, first - window + 1), len(columns) - behind
        texts = [(0, padded + sinks), *((start, start + sinks) for start in starts[:, begin:end].unique().tolist())]
        early = _places(columns[:oldest], texts) if sinks else []
        if 0 < len(early) < oldest:
            keys = torch.cat([torch.tensor(early), torch.arange(oldest, stop)]).to(keys_K.device)
        else:
            keys = slice(oldest - len(early), stop)
        yield Block(slice(begin, end), keys, behind)


def _places(columns: Sequence[int], spans: Sequence[tuple[int, int]]) -> list[int]:
    """Where in the ascending `columns` those are that lie in any of `spans`, ascending."""
    cut = [(bisect_left(columns, first), bisect_left(columns, stop)) for first, stop in spans]
    return sorted({place for first, stop in cut for place in range(first, stop)})


def _require_tensor(mask: object) -> None:
    if mask is not None and not isinstance(mask, Tensor):
        raise ValueError(
            f"hybrid heads do not take the {type(mask).__name__} of flex_attention: "
            "set the attention implementation to sdpa, eager or a flash attention"
        )
