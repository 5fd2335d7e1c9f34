"""The calibrated methods, layer by layer: the policy around the tensor functions of `grafts.quantizers`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from grafts.quantizers.awq import Scaling, search_scaling
from grafts.quantizers.gptq import Order, gptq
from grafts.rtn import Quantised
from stages.quantize.calibrate import Method, Solved
from stages.quantize.folding import Source, find_source, scale_readers, tied_parameters
from stages.quantize.layers import Group, Layer, output_power
from stages.quantize.packed import Scheme


class RoundToNearest(Method):
    """Every weight rounded to its nearest code: what a correction is usually put on."""

    def __init__(self, scheme: Scheme) -> None:
        self._scheme = scheme

    @property
    def rounds(self) -> bool:
        """Yes."""
        return True

    def solve(self, layer: Layer) -> dict[str, Solved]:
        """Codes for every chosen linear."""
        found = [(name, group.covariance) for group in layer.groups for name in group.chosen]
        weights = {name: layer.linears[name].weight.data for name, _ in found}
        return {
            name: Solved(weights[name], self._scheme.round(weights[name]), moment, layer.powers[name])
            for name, moment in found
        }


class Gptq(Method):
    """GPTQ on the stacked weights of all linears that read one input."""

    def __init__(self, scheme: Scheme, order: Order, damping: float) -> None:
        self._scheme, self._order, self._damping = scheme, order, damping

    def solve(self, layer: Layer) -> dict[str, Solved]:
        """Codes for every chosen linear."""
        solved: dict[str, Solved] = {}
        for group in layer.groups:
            weights = {name: layer.linears[name].weight.data for name in group.chosen}
            stacked = self._quantise(torch.cat([*weights.values()]), group.covariance)
            parts = _split(stacked, [len(weight) for weight in weights.values()])
            for (name, weight), part in zip(weights.items(), parts, strict=True):
                solved[name] = Solved(weight, part, group.covariance, layer.powers[name])
        return solved

    def _quantise(self, weight_OI: Tensor, covariance_II: Tensor) -> Quantised:
        return gptq(
            weight_OI,
            covariance_II,
            self._scheme.bits,
            self._scheme.group_size,
            symmetric=self._scheme.symmetric,
            damping=self._damping,
            order=self._order,
        )


class Awq(Method):
    """AWQ's scales for every input that something before it can take them from, then rounding to nearest."""

    def __init__(self, model: nn.Module, scheme: Scheme, num_exponents: int) -> None:
        self._scheme, self._num_exponents, self._tied = scheme, num_exponents, tied_parameters(model)
        self._scaling: dict[str, dict[str, Any]] = {}

    def details(self) -> Mapping[str, Any]:
        """For each input, by the first linear that reads it: what took the inverse scales, and the exponent found."""
        return {"scaling": self._scaling}

    def solve(self, layer: Layer) -> dict[str, Solved]:
        """Codes for every chosen linear, after the layer's scales have moved."""
        movable = {name for group in layer.groups for name in group.chosen}
        covariances: dict[str, Tensor] = {}
        for group in layer.groups:
            covariance_II = self._scale(layer, group, find_source(layer, group.readers, movable, self._tied))
            covariances.update(dict.fromkeys(group.chosen, covariance_II))
        return {name: self._rounded(layer.linears[name].weight.data, moment) for name, moment in covariances.items()}

    def _rounded(self, weight_OI: Tensor, covariance_II: Tensor) -> Solved:
        """A linear whose rows were scaled gives another output than before, so its power is taken anew."""
        return Solved(weight_OI, self._scheme.round(weight_OI), covariance_II, output_power(weight_OI, covariance_II))

    def _scale(self, layer: Layer, group: Group, source: Source | None) -> Tensor:
        """Move the best scales from the readers into `source`; returns the covariance of what they then read."""
        note = self._scaling[group.chosen[0]] = {"source": None, "exponent": 0.0}
        if source is None:
            return group.covariance
        found = self._search(layer, group)
        note.update(source=source.name, exponent=found.exponent)
        if found.exponent == 0:
            return group.covariance
        source.scale(1 / found.factors)
        scale_readers(layer, group.readers, found.factors)
        inverse_I = 1 / found.factors.double()
        return group.covariance * inverse_I[:, None] * inverse_I

    def _search(self, layer: Layer, group: Group) -> Scaling:
        return search_scaling(
            torch.cat([layer.linears[name].weight.data for name in group.chosen]),
            group.covariance,
            group.magnitude,
            self._scheme.bits,
            self._scheme.group_size,
            symmetric=self._scheme.symmetric,
            num_exponents=self._num_exponents,
        )


def _split(stacked: Quantised, sizes: list[int]) -> list[Quantised]:
    """The rows of each module."""
    zeros = [None] * len(sizes) if stacked.zero_point is None else stacked.zero_point.split(sizes)
    parts = zip(stacked.codes.split(sizes), stacked.scale.split(sizes), zeros, strict=True)
    return [
        Quantised(*(None if part is None else part.contiguous() for part in row), stacked.group_size) for row in parts
    ]
