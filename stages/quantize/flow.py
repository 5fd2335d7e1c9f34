"""Which linears read the very same input, found by following the tensors of a forward pass.

Names say nothing here: modules belong together when the tensor object's memory, shape and version are the same, so a
hybrid layer's branches, a router or an expert's two projections are found like query, key and value.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

Key = tuple[int, int, tuple[int, ...], tuple[int, ...], int]


class _Read(NamedTuple):
    key: Key
    tensor: Tensor
    """Held so that nothing else can come to lie at its address."""


def input_groups(linears: Mapping[str, nn.Linear], forward: Callable[[], object]) -> list[tuple[str, ...]]:
    """The names of `linears` in groups that read the same tensors whenever `forward` runs, in order of first use.

    A linear that `forward` never calls (an expert nobody chose) is a group of its own, at the end. One that is called
    several times belongs with those that read all the same inputs.
    """
    reads: dict[str, list[_Read]] = {name: [] for name in linears}
    called: list[str] = []

    def record(name: str, x: Tensor) -> None:
        called.append(name)
        reads[name].append(_Read(_key(x), x))

    with watching_inputs(linears, record), torch.no_grad():
        forward()
    groups: dict[tuple[Key, ...], list[str]] = {}
    for name in dict.fromkeys(called):
        groups.setdefault(tuple(read.key for read in reads[name]), []).append(name)
    return [*map(tuple, groups.values()), *((name,) for name in linears if not reads[name])]


@contextmanager
def watching_inputs(linears: Mapping[str, nn.Linear], see: Callable[[str, Tensor], None]) -> Iterator[None]:
    """Call `see(name, x)` whenever one of `linears` is about to read x."""
    with ExitStack() as stack:
        for name, linear in linears.items():
            handle = linear.register_forward_pre_hook(lambda _, inputs, name=name: see(name, inputs[0]))
            stack.callback(handle.remove)
        yield


@contextmanager
def watching_outputs(linears: Mapping[str, nn.Linear], see: Callable[[str, Tensor], None]) -> Iterator[None]:
    """Call `see(name, y)` whenever one of `linears` has given y."""
    with ExitStack() as stack:
        for name, linear in linears.items():
            handle = linear.register_forward_hook(lambda _, __, output, name=name: see(name, output))
            stack.callback(handle.remove)
        yield


def _key(x: Tensor) -> Key:
    # The version tells a tensor from itself after a change in place.
    return x.untyped_storage().data_ptr(), x.storage_offset(), tuple(x.shape), x.stride(), x._version
