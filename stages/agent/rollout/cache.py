"""Caches of keys and values: one of many rollouts while they are written, one for each in between."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

KeysValues = list[tuple[Tensor, Tensor]]
"""Keys and values of one rollout, [H, C, D] in each layer."""


class RoomyLayer(DynamicLayer):
    """Keys and values with room to grow, so that a token does not copy all that stand before it."""

    ROOM = 128

    def update(self, key_states: Tensor, value_states: Tensor, *_: object, **__: object) -> tuple[Tensor, Tensor]:
        """Append keys and values [B, H, T, D]; returns all of them, as views."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.key_room = self.value_room = key_states[:, :, :0]
            self.num_columns = 0
        start, self.num_columns = self.num_columns, self.num_columns + key_states.shape[2]
        if self.num_columns > self.key_room.shape[2]:
            self.key_room, self.value_room = (self._grown(x, start) for x in (self.key_room, self.value_room))
        self.key_room[:, :, start : self.num_columns] = key_states
        self.value_room[:, :, start : self.num_columns] = value_states
        self.keys, self.values = self.key_room[:, :, : self.num_columns], self.value_room[:, :, : self.num_columns]
        return self.keys, self.values

    def _grown(self, old: Tensor, num_kept: int) -> Tensor:
        batch, heads, _, width = old.shape
        new = old.new_empty(batch, heads, self.num_columns + self.ROOM, width)
        new[:, :, :num_kept] = old[:, :, :num_kept]
        return new


def joined(rows: list[KeysValues], model: PreTrainedModel) -> tuple[Cache, Tensor]:
    """One cache of all rows, padded on the left, and which columns each row fills, [B, C]."""
    cache = DynamicCache(config=model.config)
    if not getattr(model.config, "grafts", None):  # a graft may want to put its own layers in their place
        cache.layers = [RoomyLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    lengths = torch.tensor([row[0][0].shape[1] if row else 0 for row in rows], device=model.device)
    width = int(lengths.max())
    if width:
        for number, layer in enumerate(cache.layers):
            both = [_padded([row[number][side] if row else None for row in rows], width) for side in (0, 1)]
            layer.update(*both)
    return cache, torch.arange(width, device=model.device) >= width - lengths.unsqueeze(1)


def _padded(parts: list[Tensor | None], width: int) -> Tensor:
    """Tensors [H, C, D], some of which are missing, under each other: [B, H, width, D], zeros on the left."""
    like = next(part for part in parts if part is not None)
    joined = like.new_zeros(len(parts), like.shape[0], width, like.shape[2])
    for row, part in enumerate(parts):
        if part is not None:
            joined[row, :, width - part.shape[1] :] = part
    return joined
