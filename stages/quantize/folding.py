"""Where the scales of a linear's inputs can go: found by trying, on the layer itself.

A norm or linear can take the inverse scales when multiplying its output features by c and dividing the columns of all
readers by c leaves everything the layer computes as it was. That identity is tried with random powers of two, which
change no digit, in float32. No name and no architecture is asked for: what passes is right, what does not is left.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final, NamedTuple

import torch
from torch import Tensor, nn

from grafts.arithmetic import as_float32, in_float32
from stages.quantize.flow import watching_outputs
from stages.quantize.layers import Layer
from stages.quantize.stream import Call, Probe

TOLERANCE: Final = 1e-3
"""How far anything the layer computes may move, relative; a wrong place moves it by about one."""


class Source(NamedTuple):
    """A module whose output features can be scaled by its own parameters."""

    name: str
    module: nn.Module
    offset: float
    """What the norm adds to its weight (Gemma: 1), else 0"""

    def scale(self, factors_O: Tensor) -> None:
        """Multiply output feature o by `factors_O[o]`."""
        weight = self.module.weight.data
        factors_O = factors_O.to(weight.device)
        shape = (-1, *[1] * (weight.ndim - 1))
        weight.copy_((weight.float() + self.offset) * factors_O.view(shape) - self.offset)
        bias = getattr(self.module, "bias", None)
        if bias is not None:
            bias.data.copy_(bias.float() * factors_O)


def find_source(layer: Layer, readers: Sequence[str], movable: set[str], tied: set[int]) -> Source | None:
    """What can take the inverse scales of the input that `readers` read, or None.

    `movable` names the linears that may be changed, `tied` holds the parameters that may not: see `tied_parameters`.
    """
    width = layer.linears[readers[0]].in_features
    if any(id(layer.linears[name].weight) in tied for name in readers):
        return None
    candidates = [
        source
        for source in _candidates(layer, width, movable)
        if source.name not in readers and not tied & {id(each) for each in source.module.parameters(recurse=False)}
    ]
    if not candidates:
        return None
    signs_I = torch.randint(0, 2, (width,), generator=torch.Generator().manual_seed(0)) * 2 - 1
    factors_I = torch.pow(2.0, signs_I)
    with _in_float32(layer) as probe:
        before = _computed(layer, probe)
        if not all(name in before and before[name].any() for name in readers):
            return None  # an expert the probe does not reach: nothing could tell a wrong place
        for source in candidates:
            with _scaled(layer, source, readers, factors_I):
                after = _computed(layer, probe)
            if _same(before, after, except_for=source.name):
                return source
    return None


def tied_parameters(model: nn.Module) -> set[int]:
    """The ids of parameters that stand in several places of `model`: a change for one would be a change for all."""
    counts = Counter(id(parameter) for _, parameter in model.named_parameters(remove_duplicate=False))
    return {parameter for parameter, count in counts.items() if count > 1}


def scale_readers(layer: Layer, readers: Sequence[str], factors_I: Tensor) -> None:
    """Multiply the columns of the readers' weights."""
    for name in readers:
        weight = layer.linears[name].weight.data
        weight.copy_(weight.float() * factors_I.to(weight.device))


def _candidates(layer: Layer, width: int, movable: set[str]) -> Iterator[Source]:
    """Norms first: they are there for nothing else."""
    for part, module in layer.module.named_modules():
        weight = getattr(module, "weight", None)
        if isinstance(weight, Tensor) and weight.ndim == 1 and len(weight) == width:
            for offset in (0.0, 1.0):
                yield Source(f"{layer.name}.{part}", module, offset)
    for name, linear in layer.linears.items():
        if linear.out_features == width and name in movable:
            yield Source(name, linear, 0.0)


def _computed(layer: Layer, probe: Probe) -> dict[str, Tensor]:
    """What every linear of the layer gives, and what the layer adds to its input."""
    seen: dict[str, Tensor] = {}
    with watching_outputs(layer.linears, seen.__setitem__):
        seen[""] = probe.run(layer.module) - probe.hidden
    return seen


def _same(before: dict[str, Tensor], after: dict[str, Tensor], *, except_for: str) -> bool:
    names = before.keys() - {except_for}
    return before.keys() == after.keys() and all(_moved(before[name], after[name]) <= TOLERANCE for name in names)


def _moved(before: Tensor, after: Tensor) -> float:
    if before.shape != after.shape:
        return float("inf")
    moved, whole = torch.linalg.vector_norm(after - before), torch.linalg.vector_norm(before)
    return (moved / whole).item() if whole > 0 else float(moved > 0)


@contextmanager
def _scaled(layer: Layer, source: Source, readers: Sequence[str], factors_I: Tensor) -> Iterator[None]:
    """The source multiplied and the readers divided, for a while."""
    changed = [source.module, *(layer.linears[name] for name in readers)]
    saved = [(parameter, parameter.data) for module in changed for parameter in module.parameters(recurse=False)]
    for parameter, data in saved:
        parameter.data = data.clone()
    try:
        source.scale(factors_I)
        scale_readers(layer, readers, 1 / factors_I)
        yield
    finally:
        for parameter, data in saved:
            parameter.data = data


@contextmanager
def _in_float32(layer: Layer) -> Iterator[Probe]:
    """The layer and its probe in float32, for a while; afterwards every tensor is the very same as before."""
    call = layer.probe.call
    with in_float32(layer.module):
        yield Probe(layer.probe.hidden.float(), Call(as_float32(call.args), as_float32(call.kwargs)))
