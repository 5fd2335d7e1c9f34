"""Turns written by a `transformers` model: a batch at a time, padded on the left, its cache going on over turns.

Between turns the keys and values of each rollout stand by themselves, so that rollouts may come and go. In a batch they
are padded on the left to the longest; what a tool said is then read by all rollouts at once, and tokens are written for
all of them until each has stopped. A prompt that several rollouts share is read once. Models whose cache is not plain
keys and values (linear heads, sliding windows) read the whole conversation again at each turn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicLayer

from stages.agent.rollout.cache import KeysValues, RoomyLayer, joined
from stages.agent.rollout.engine import Engine, Request, Sampling, Written
from stages.agent.rollout.sampling import draw, uniforms
from stages.evaluate.distance import evaluating


@dataclass(frozen=True)
class Memory:
    """What a rollout's cache holds: keys and values of its first ids."""

    ids: list[int]
    layers: KeysValues


@dataclass
class Row:
    """A turn under way: the ids in the cache, those still to be read, and those written."""

    request: Request
    memory: Memory
    uniform: Tensor
    ids: list[int] = field(default_factory=list)
    logp: list[float] = field(default_factory=list)
    done: bool = False

    @property
    def unread(self) -> list[int]:
        """What the model has to read before it writes."""
        return list(self.request.ids[len(self.memory.ids) :])


class TransformersEngine(Engine):
    """Writes with `model`, in whatever state its weights are; call `forget` when they change."""

    def __init__(self, model: PreTrainedModel, stop_id: int, sampling: Sampling) -> None:
        self.model, self.stop_id, self.sampling = model, stop_id, sampling
        self._memories: dict[int, Memory] = {}
        self._remembers = True

    def forget(self) -> None:
        """Drop all keys and values."""
        self._memories.clear()

    @torch.no_grad()
    def write(self, requests: Sequence[Request]) -> list[Written]:
        """Write all turns in one batch."""
        with evaluating(self.model):
            self._read_shared_prompts(requests)
            rows = [self._row(request) for request in requests]
            batch = _Batch(self.model, rows)
            logits_BV = batch.read([row.unread for row in rows])
            self._remembers = batch.is_plain
            while not self._add_tokens(batch.rows, logits_BV):
                batch, logits_BV = self._without_finished(batch)
            self._remember(batch)
        return [Written(row.ids, row.logp, row.ids[-1] == self.stop_id) for row in rows]

    def _row(self, request: Request) -> Row:
        memory = self._memories.pop(request.key, None)
        if memory is None or list(request.ids[: len(memory.ids)]) != memory.ids or len(memory.ids) >= len(request.ids):
            memory = Memory([], [])
        return Row(request, memory, uniforms(request.seed, request.max_tokens))

    def _read_shared_prompts(self, requests: Sequence[Request]) -> None:
        """Read what several new rollouts begin with once, all but its last token, which each then reads itself."""
        fresh: dict[tuple[int, ...], list[int]] = {}
        for request in requests:
            if self._remembers and request.key not in self._memories and len(request.ids) > 1:
                fresh.setdefault(tuple(request.ids[:-1]), []).append(request.key)
        for ids, keys in fresh.items():
            if len(keys) > 1:
                batch = _Batch(self.model, [Row(Request(keys[0], ids, 0, 1), Memory([], []), torch.zeros(1))])
                batch.read([list(ids)])
                for memory in batch.memories()[:1]:
                    self._memories |= dict.fromkeys(keys, memory)

    def _add_tokens(self, rows: list[Row], logits_BV: Tensor) -> bool:
        """Draw the next token of every row that goes on; True when none does any more."""
        uniform_B = torch.stack([row.uniform[min(len(row.ids), len(row.uniform) - 1)] for row in rows])
        token_B, logp_B = draw(logits_BV, uniform_B, self.sampling)
        for row, token, logp in zip(rows, token_B.tolist(), logp_B.tolist(), strict=True):
            if not row.done:
                row.ids.append(token)
                row.logp.append(logp)
                row.done = token == self.stop_id or len(row.ids) == row.request.max_tokens
        return all(row.done for row in rows)

    def _without_finished(self, batch: _Batch) -> tuple[_Batch, Tensor]:
        """Read the newest tokens; once half of the rows are done, go on without those."""
        going = [number for number, row in enumerate(batch.rows) if not row.done]
        if batch.is_plain and 2 * len(going) <= len(batch.rows):
            self._remember(batch, but=going)
            batch = batch.only(going)
        return batch, batch.read([[] if row.done else [row.ids[-1]] for row in batch.rows])

    def _remember(self, batch: _Batch, but: Sequence[int] = ()) -> None:
        for number, memory in enumerate(batch.memories()):
            if number not in but:
                self._memories[batch.rows[number].request.key] = memory


class _Batch:
    """Rows beside each other: their joint cache, and which of its columns each of them has filled."""

    def __init__(self, model: PreTrainedModel, rows: list[Row]) -> None:
        self.model, self.rows, self.device = model, rows, model.device
        self.cache, self.filled_BC = joined([row.memory.layers for row in rows], model)
        self.read_ids = [list(row.memory.ids) for row in rows]

    @property
    def is_plain(self) -> bool:
        """Whether the cache is keys and values of every token: only then rows can be taken apart."""
        return all(type(layer) in (DynamicLayer, RoomyLayer) for layer in self.cache.layers)

    def read(self, unread: list[list[int]]) -> Tensor:
        """Read ids, none where a row is done; the logits [B, V] after the last of each."""
        width = max(len(ids) for ids in unread)
        padding = [width - len(ids) for ids in unread]
        ids_BW = torch.tensor([[0] * pad + ids for pad, ids in zip(padding, unread, strict=True)], device=self.device)
        new_BW = torch.arange(width, device=self.device) >= torch.tensor(padding, device=self.device).unsqueeze(1)
        self.filled_BC = torch.cat([self.filled_BC, new_BW], dim=1)
        positions_BW = (self.filled_BC.cumsum(1)[:, -width:] - 1).clamp(min=0)
        output = self.model(
            input_ids=ids_BW,
            attention_mask=self.filled_BC.long(),
            position_ids=positions_BW,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        self.read_ids = [before + ids for before, ids in zip(self.read_ids, unread, strict=True)]
        return output.logits[:, -1]

    def memories(self) -> list[Memory]:
        """What each row's cache holds, by itself; nothing where caches cannot be taken apart."""
        if not self.is_plain:
            return []
        return [
            Memory(ids, [(layer.keys[row][:, filled_C], layer.values[row][:, filled_C]) for layer in self.cache.layers])
            for row, (ids, filled_C) in enumerate(zip(self.read_ids, self.filled_BC, strict=True))
        ]

    def only(self, chosen: list[int]) -> _Batch:
        """The batch without the other rows, and without the columns that only they filled."""
        memories = self.memories()
        rows = [self.rows[number] for number in chosen]
        for row, number in zip(rows, chosen, strict=True):
            row.memory = memories[number]
        return _Batch(self.model, rows)
