"""What one hybrid layer keeps between tokens: keys and values of its softmax heads, states of its linear heads.

Any `DynamicCache` does: a hybrid layer puts its own cache layer in its place when it first runs. Keys and values are
kept only for the key-value groups that a softmax head of the layer reads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicLayer, DynamicSlidingWindowLayer

Branch = Literal["full", "window"]


class HybridCacheLayer(CacheLayerMixin):
    """Keys and values for each softmax branch, and the recurrent and convolution states of the linear branch."""

    def __init__(self, base_window: int | None, stores: dict[Branch, DynamicLayer]) -> None:
        super().__init__()
        self.base_window = base_window
        """The window of the layer before conversion, or None: what its attention mask is made for."""
        self.stores = stores
        self.num_tokens = 0
        self.recurrent_state: Tensor | None = None
        """[B, H, K, V]"""
        self.conv_state: Tensor | None = None
        """[B, kernel - 1, channels]: the latest inputs of the short convolution"""

    @property
    def is_sliding(self) -> bool:
        """Whether the layer's mask is made for a window."""
        return self.base_window is not None

    @property
    def is_croppable(self) -> bool:  # type: ignore[override]
        """Whether what was read can be taken back: not from linear heads, nor from windows that moved on."""
        return self.recurrent_state is None and not any(store.is_sliding for store in self.stores.values())

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing to prepare: the stores prepare themselves."""

    def update(
        self, key_states: Tensor, value_states: Tensor, *_: Any, branch: Branch = "full", padding: int = 0, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """Append keys and values [B, G, T, D] of `branch`; returns all that its heads may read."""
        self.is_initialized = True
        return self.stores[branch].update(key_states, value_states, padding=padding)

    def columns(self, branch: Branch, keys: Tensor) -> Tensor:
        """The columns of the batch [K] that `keys` [B, G, K, D], the last that `update` returned, stand for."""
        store = self.stores[branch]
        if isinstance(store, SinkWindowLayer):
            return store.columns
        return torch.arange(keys.shape[2], device=keys.device)

    def advance(self, num_tokens: int) -> None:
        """Count tokens read: once for each pass through the layer, after its branches."""
        self.is_initialized = True
        self.num_tokens += num_tokens

    def get_seq_length(self) -> int:
        """Tokens read so far."""
        return self.num_tokens

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Number of keys that the layer's mask covers, and the position of the first."""
        if self.base_window is None:
            return self.num_tokens + query_length, 0
        kept = min(self.num_tokens, self.base_window - 1)
        return kept + query_length, self.num_tokens - kept

    def get_max_length(self) -> int:
        """No maximum."""
        return -1

    def tensors(self) -> Iterator[Tensor]:
        """All that is kept."""
        held = [tensor for store in self.stores.values() for tensor in (store.keys, store.values)]
        yield from (tensor for tensor in (*held, self.recurrent_state, self.conv_state) if tensor is not None)

    def reset(self) -> None:
        """Forget everything."""
        for store in self.stores.values():
            store.reset()
        self.num_tokens, self.recurrent_state, self.conv_state = 0, None, None
        self.is_initialized = False

    def crop(self, tokens_to_remove: int) -> None:
        """Take back the last `-tokens_to_remove` tokens; RuntimeError where linear heads have read them."""
        if tokens_to_remove == 0 or not self.num_tokens:
            return
        if self.recurrent_state is not None:
            raise RuntimeError("the cache of a layer with linear heads cannot be cropped: start again from `reset()`")
        if not self.is_croppable:
            raise RuntimeError("a cache of windows does not track past states: it cannot be cropped, only `reset()`")
        for store in self.stores.values():
            store.crop(tokens_to_remove)
        self.num_tokens -= abs(tokens_to_remove)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Beam search: row i becomes what row `beam_idx[i]` was."""
        self._rows(lambda tensor: tensor.index_select(0, beam_idx.to(tensor.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Each row `repeats` times."""
        self._rows(lambda tensor: tensor.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Only the rows `indices`."""
        self._rows(lambda tensor: tensor[indices])

    def offload(self) -> None:
        """Move keys and values to the CPU; the states are small and stay."""
        for store in self.stores.values():
            store.offload()

    def prefetch(self) -> None:
        """Move keys and values back."""
        for store in self.stores.values():
            store.prefetch()

    def _rows(self, choose: Callable[[Tensor], Tensor]) -> None:
        for store in self.stores.values():
            if store.is_initialized:
                store.keys, store.values = choose(store.keys), choose(store.values)
        if self.recurrent_state is not None:
            self.recurrent_state = choose(self.recurrent_state)
        if self.conv_state is not None:
            self.conv_state = choose(self.conv_state)


class SinkWindowLayer(DynamicSlidingWindowLayer):
    """The keys and values of the last `window` - 1 tokens and of the first `sinks` of the text."""

    def __init__(self, window: int, sinks: int) -> None:
        super().__init__(window)
        self.sinks = sinks
        self.columns = torch.arange(0)
        """Of what `update` returned last."""
        self.num_first = sinks

    def update(
        self, key_states: Tensor, value_states: Tensor, *_: Any, padding: int = 0, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """As the base class; the `padding` of the first call, at most so many columns of it, is kept before the sinks.

        Rows of a batch begin at columns of their own, so what is kept is every column up to the last row's sinks.
        """
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        if not self.cumulative_length:
            self.columns, self.num_first = torch.arange(0, device=key_states.device), self.sinks + padding
        start, self.cumulative_length = self.cumulative_length, self.cumulative_length + key_states.shape[-2]
        added = torch.arange(start, self.cumulative_length, device=key_states.device)
        self.columns = torch.cat([self._kept(self.columns[None, None, :, None]).flatten(), added])
        keys, values = torch.cat([self.keys, key_states], dim=-2), torch.cat([self.values, value_states], dim=-2)
        self.keys, self.values = self._kept(keys), self._kept(values)
        return keys, values

    def _kept(self, states: Tensor) -> Tensor:
        first, last = self.num_first, self.sliding_window - 1
        if states.shape[-2] <= first + last:
            return states
        return torch.cat([states[..., :first, :], states[..., -last:, :]], dim=-2)


def key_value_store(window: int | None, sinks: int = 0) -> DynamicLayer:
    """An empty store of keys and values: of everything, of a window, or of a window and the first tokens."""
    if window is None:
        return DynamicLayer()
    return SinkWindowLayer(window, sinks) if sinks else DynamicSlidingWindowLayer(window)


def key_value_bytes(
    groups: int, head_dim: int, dtype: torch.dtype, num_tokens: int, window: int | None, sinks: int = 0
) -> int:
    """Bytes that a `key_value_store` for `groups` keeps of one row of `num_tokens` tokens."""
    kept = num_tokens if window is None else min(num_tokens, sinks + window - 1)
    return groups * 2 * head_dim * kept * dtype.itemsize


def claim(cache: Cache, layer: int, make: Callable[[], HybridCacheLayer]) -> HybridCacheLayer:
    """The hybrid cache layer at index `layer` of `cache`, put there by `make` if nothing has been cached yet.

    ValueError when the cache is of another kind than `DynamicCache`, whose layers cannot hold states.
    """
    while cache.layer_class_to_replicate is not None and len(cache.layers) <= layer:
        cache.layers.append(cache.layer_class_to_replicate())
    held = cache.layers[layer]
    if isinstance(held, HybridCacheLayer):
        return held
    if type(held) not in (DynamicLayer, DynamicSlidingWindowLayer) or held.get_seq_length():
        raise ValueError(
            f"a model with hybrid heads keeps its states in a DynamicCache, layer {layer} of this cache is a "
            f"{type(held).__name__} of {held.get_seq_length()} tokens: leave out `cache_implementation`, or start anew"
        )
    cache.layers[layer] = made = make()
    return made


def cache_bytes(cache: Cache) -> int:
    """Bytes of all the tensors that `cache` holds."""
    total = 0
    for layer in cache.layers:
        held = layer.tensors() if isinstance(layer, HybridCacheLayer) else (layer.keys, layer.values)
        total += sum(tensor.numel() * tensor.element_size() for tensor in held if torch.is_tensor(tensor))
    return total
