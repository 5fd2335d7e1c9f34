"""Bytes of tensors: those a cache holds, and the most that are alive at once while something runs."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import PretrainedConfig


def cache_bytes(cache: object) -> int:
    """Bytes of the tensors that `cache` holds: keys and values, recurrent and convolution states, codes and scales.

    Every attribute and container in it is followed, so any cache class will do. Views of one buffer count what they
    show, and never more than the buffer.
    """
    buffers: dict[int, dict[tuple[object, ...], Tensor]] = {}
    for tensor in _tensors(cache, set()):
        view = (tensor.storage_offset(), tuple(tensor.shape), tensor.stride())
        buffers.setdefault(tensor.untyped_storage()._cdata, {})[view] = tensor
    return sum(_buffer_bytes(views.values()) for views in buffers.values())


def parameter_bytes(model: nn.Module) -> int:
    """Bytes of the parameters and buffers of `model`, tied ones once."""
    return cache_bytes([*model.parameters(), *model.buffers()])


class PeakTensorBytes(TorchDispatchMode):
    """Counts the tensors made while it is entered; `peak` is the most bytes of them alive at once.

    It sees what operators return, on any device, and what views keep alive; not the scratch memory inside a kernel.
    """

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._alive: dict[int, int] = {}
        self._total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operator and count the buffers of its results that are new."""
        known = {leaf.untyped_storage()._cdata for leaf in tree_leaves((args, kwargs)) if _is_plain(leaf)}
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if _is_plain(leaf) and leaf.untyped_storage()._cdata not in known:
                self._count(leaf.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._alive:
            return
        self._alive[key] = storage.nbytes()
        self._total += storage.nbytes()
        self.peak = max(self.peak, self._total)
        weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        self._total -= self._alive.pop(key, 0)


def _is_plain(value: object) -> bool:
    return isinstance(value, Tensor) and value.layout == torch.strided


def _buffer_bytes(views: Iterable[Tensor]) -> int:
    tensors = list(views)
    return min(tensors[0].untyped_storage().nbytes(), sum(tensor.nbytes for tensor in tensors))


def _tensors(value: object, seen: set[int]) -> Iterator[Tensor]:
    if id(value) in seen or isinstance(value, (str, bytes, int, float, type, nn.Module, PretrainedConfig)):
        return
    seen.add(id(value))
    if isinstance(value, Tensor) and not hasattr(value, "__tensor_flatten__"):
        yield value
        return
    for part in _parts(value):
        yield from _tensors(part, seen)


def _parts(value: object) -> Iterable[object]:
    """What is inside: the plain tensors of a tensor subclass, the items of a container, the attributes of an object."""
    if isinstance(value, Tensor):
        names, _ = value.__tensor_flatten__()
        return [getattr(value, name) for name in names]
    if isinstance(value, Mapping):
        return value.values()
    if isinstance(value, (list, tuple, set, frozenset)):
        return value
    return getattr(value, "__dict__", {}).values()
